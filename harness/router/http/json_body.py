"""JSON bodies of requests and responses; text that is no valid UTF-8 is refused or replaced."""

import json
import math
from typing import Any, NoReturn

from starlette.responses import Response

from harness.router.errors import RouterError
from harness.router.json_log import request_id

Json = dict[str, Any]

ADMIN_PATHS = ("/admin/", "/router/")
"""They need the admin key."""
LONGEST_NAME = 256
"""Bytes of a model's name: it goes into logs and errors."""
_LONGEST_INTEGER = 20
"""Digits and sign of 64 bits: a server's parser would take a longer one for infinity."""


def parse_object(body: bytes, *, whole_pairs: bool = False) -> Json:
    """The JSON object in a request's body.

    Args:
        whole_pairs: refuse half a surrogate pair, which servers cannot read. Else ``dump`` replaces it.

    Raises:
        RouterError: the body is something else, or has a number that no server can read (400).
    """
    try:
        value = _decode(body.decode())
    except ValueError as error:
        raise RouterError(400, "bad_request", f"the body is not JSON: {error}") from None
    except RecursionError:
        raise RouterError(400, "bad_request", "the body is nested too deeply") from None
    if not isinstance(value, dict):
        raise RouterError(400, "bad_request", "the body is not a JSON object")
    if whole_pairs and (b"\\ud" in body or b"\\uD" in body) and not _encodable(_text(value)):
        raise RouterError(400, "bad_request", "the body has half a surrogate pair, which is no character")
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _integer(digits: str) -> int:
    value = int(digits) if len(digits) <= _LONGEST_INTEGER else 1 << 64
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"the number {digits[:20]}... has more than 64 bits")
    return value


def _number(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


_decode = json.JSONDecoder(parse_constant=_no_number, parse_int=_integer, parse_float=_number).decode
"""Made once: ``json.loads`` would make a decoder for every request."""


def model_of(body: Json) -> str:
    """The model that a request's body names.

    Raises:
        RouterError: it names none, or the name is no text or longer than 256 bytes (400).
    """
    model = body.get("model") or body.get("name")
    if not isinstance(model, str):
        raise RouterError(400, "bad_request", "the body names no model")
    if len(model.encode("utf-8", "replace")) > LONGEST_NAME:
        raise RouterError(400, "bad_request", f"the model's name is longer than {LONGEST_NAME} bytes")
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
    text = _text(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def line(value: Any) -> bytes:
    """One line of a stream of JSON objects."""
    return dump(value) + b"\n"


def respond(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response of one JSON value."""
    return Response(dump(value), status, headers, "application/json")


def respond_error(error: RouterError, path: str, headers: dict[str, str]) -> Response:
    """The response for an error, in the form of the API that ``path`` belongs to.

    Users get class, message and the request's id; the rest is for paths that need the admin key.
    """
    current_id = request_id.get()
    if path.startswith("/api/"):
        body = error.ollama_body(current_id)
    else:
        body = error.body(current_id, for_admin=path.startswith(ADMIN_PATHS))
    return respond(body, error.status, error.headers | headers)


_text = json.JSONEncoder(ensure_ascii=False).encode
"""Made once, as well."""


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
