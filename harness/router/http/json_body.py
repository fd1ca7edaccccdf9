"""JSON bodies of requests and responses; text that is no valid UTF-8 is refused or replaced."""

import json
from typing import Any, NoReturn

from starlette.responses import Response

from harness.router.errors import RouterError

Json = dict[str, Any]


def parse_object(body: bytes) -> Json:
    """The JSON object in a request's body.

    Raises:
        RouterError: the body is something else (400).
    """
    try:
        value = _decode(body.decode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise RouterError(400, "bad_request", f"the body is not JSON: {error}") from None
    except RecursionError:
        raise RouterError(400, "bad_request", "the body is nested too deeply") from None
    if not isinstance(value, dict):
        raise RouterError(400, "bad_request", "the body is not a JSON object")
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_decode = json.JSONDecoder(parse_constant=_no_number).decode
"""Made once: ``json.loads`` would make a decoder for every request."""


def model_of(body: Json) -> str:
    """The model that a request's body names.

    Raises:
        RouterError: it names none, or the name is no text (400).
    """
    model = body.get("model") or body.get("name")
    if not isinstance(model, str):
        raise RouterError(400, "bad_request", "the body names no model")
    if not _encodable(model):
        raise RouterError(400, "bad_request", f"no model can be called {model!a}")
    return model


def parse_answer(body: bytes) -> Json:
    """The JSON object in a server's response.

    Raises:
        RouterError: the response is something else (502).
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise RouterError(502, "upstream", f"the server's answer is not a JSON object: {body[:80]!r}")
    return answer


def dump(value: Any) -> bytes:
    """JSON in UTF-8. Half a surrogate pair is not allowed there and becomes U+FFFD, as in Ollama."""
    text = json.dumps(value, ensure_ascii=False)
    if _encodable(text):
        return text.encode()
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def line(value: Any) -> bytes:
    """One line of a stream of JSON objects."""
    return dump(value) + b"\n"


def respond(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response of one JSON value."""
    return Response(dump(value), status, headers, "application/json")


def respond_error(error: RouterError, path: str, headers: dict[str, str]) -> Response:
    """The response for an error, in the form of the API that ``path`` belongs to."""
    body = error.ollama_body() if path.startswith("/api/") else error.body()
    return respond(body, error.status, error.headers | headers)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
