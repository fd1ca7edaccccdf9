"""Ollama's requests as OpenAI's. Pure: dictionaries in, dictionaries out.

Ollama: https://github.com/ollama/ollama/blob/main/docs/api.md. What only Ollama can do is left out, and
named by ``without_effect``: ``template`` and ``context`` (the server keeps its own prompt cache),
``truncate``, and options that belong to a load, such as ``num_ctx``, which the plan decides. Options are
those of llama-server's sampling.
"""

import json
from collections.abc import Iterable
from typing import Any, TypeVar

from harness.router.errors import RouterError
from harness.router.http.json_body import Json
from harness.router.requests.fields import SAMPLING

T = TypeVar("T", str, list[Any])

_RENAMED = {"num_predict": "max_tokens", "num_keep": "n_keep"}
_OPTIONS = frozenset(SAMPLING)
_KNOWN = frozenset(
    {
        "model", "name", "stream", "keep_alive", "options", "format", "think", "logprobs", "top_logprobs",
        "messages", "tools", "prompt", "system", "images", "raw", "suffix", "input", "dimensions",
    }
)  # fmt: skip
_IMAGES = {"/9j/": "jpeg", "iVBOR": "png", "R0lGOD": "gif", "UklGR": "webp"}
"""First characters of each format in base64."""


def streams(body: Json) -> bool:
    """Whether the answer is a stream: yes by default."""
    return body.get("stream") is not False


def loads_only(body: Json) -> bool:
    """Whether the request only loads the model, or unloads it with ``keep_alive`` 0."""
    return not any(body.get(part) for part in ("messages", "prompt", "images", "suffix", "input"))


def unloads(body: Json) -> bool:
    """Whether ``keep_alive`` is zero: a number, or a duration like ``0s``."""
    keep_alive = body.get("keep_alive")
    if isinstance(keep_alive, str):
        return keep_alive.strip("+-0.hmnsuµ") == "" and "0" in keep_alive
    return isinstance(keep_alive, int | float) and not isinstance(keep_alive, bool) and keep_alive == 0


def without_effect(body: Json) -> list[str]:
    """Fields and options of a chat or generate request that are not passed on."""
    options = body.get("options") or {}
    unknown = [name for name, value in body.items() if name not in _KNOWN and value is not None]
    return unknown + [f"options.{name}" for name in options if _RENAMED.get(name, name) not in _OPTIONS]


def spelled(path: str) -> str:
    """Ollama's name for the path of a field of the converted request."""
    if path in _OPTIONS:
        return "options." + next((theirs for theirs, ours in _RENAMED.items() if ours == path), path)
    return path.replace("response_format.json_schema.schema", "format", 1)


def chat_request(body: Json) -> Json:
    """The chat completion that asks for the same as this ``/api/chat`` body.

    Raises:
        RouterError: a message, a tool or the format is none (400).
    """
    messages = _field(body, "messages", list)
    request = _common(body) | {"messages": _messages(messages)}
    if tools := _field(body, "tools", list):
        request["tools"] = tools
    return request | _format(body) | _think(body) | _logprobs(body)


def generate_request(body: Json) -> Json:
    """The chat completion for a ``/api/generate`` body: its prompt is what the user says.

    Raises:
        RouterError: the prompt, the images or the format is none (400).
    """
    message: Json = {"role": "user", "content": _field(body, "prompt", str), "images": body.get("images")}
    system = _field(body, "system", str)
    messages = [{"role": "system", "content": system}] if system else []
    request = _common(body) | {"messages": _messages([*messages, message])}
    return request | _format(body) | _think(body) | _logprobs(body)


def raw_request(body: Json) -> Json:
    """The completion for a ``/api/generate`` body with ``raw``: the prompt without any template.

    Raises:
        RouterError: the prompt or the format is none, or there are images, which need a template (400).
    """
    if body.get("images"):
        raise RouterError(400, "bad_request", "raw mode does not support images")
    request = _common(body) | {"prompt": _field(body, "prompt", str)} | _format(body)
    if body.get("logprobs"):
        request["logprobs"] = body.get("top_logprobs") or 1
    return request


def insert_request(body: Json) -> Json:
    """llama-server's ``/infill`` for a ``/api/generate`` body with ``suffix``."""
    request = _common(body)
    return request | {
        "n_predict": request.get("max_tokens", -1),
        "prompt": "",
        "input_prefix": _field(body, "prompt", str),
        "input_suffix": _field(body, "suffix", str),
    }


def embed_request(body: Json, text: Any) -> Json:
    """The embeddings request for a text or texts.

    Raises:
        RouterError: it is neither (400).
    """
    texts = text if isinstance(text, list) else [text]
    if not all(isinstance(item, str) for item in texts):
        raise RouterError(400, "bad_request", "invalid input type: a text or a list of texts is expected")
    return {"model": body["model"], "input": text, "encoding_format": "float"}


def _common(body: Json) -> Json:
    options = body.get("options") or {}
    if not isinstance(options, dict):
        raise RouterError(400, "bad_request", "options: an object is expected")
    options = {name: value for name, value in options.items() if value is not None}
    named = {_RENAMED.get(name, name): value for name, value in options.items()}
    request = {name: value for name, value in named.items() if name in _OPTIONS}
    limit = request.get("max_tokens")
    if isinstance(limit, int) and limit <= 0:
        del request["max_tokens"]  # zero and below: no limit
    request |= {"model": body["model"], "stream": streams(body)}
    if request["stream"]:
        request["stream_options"] = {"include_usage": True}
    return request


def _format(body: Json) -> Json:
    answer_format = body.get("format")
    if not answer_format:
        return {}
    if answer_format == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(answer_format, dict):
        schema = {"name": "format", "schema": answer_format}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    shown = json.dumps(answer_format)[:80]
    message = f'invalid format: {shown}; expected "json" or a valid JSON Schema object'
    raise RouterError(400, "bad_request", message)


def _think(body: Json) -> Json:
    think = body.get("think")
    if think is None:
        return {}
    kwargs: Json = {"enable_thinking": bool(think)}
    if isinstance(think, str):
        kwargs["reasoning_effort"] = think
    return {"chat_template_kwargs": kwargs}


def _logprobs(body: Json) -> Json:
    if not body.get("logprobs"):
        return {}
    return {"logprobs": True, "top_logprobs": body.get("top_logprobs") or 0}


def _messages(messages: Iterable[Any]) -> list[Json]:
    """Messages with ids for the calls of tools: Ollama may leave them out, OpenAI pairs by them."""
    converted, open_calls = [], []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RouterError(400, "bad_request", f"messages[{number}]: an object with a role is expected")
        out = _message(message, number)
        open_calls += [(call["function"]["name"], call["id"]) for call in out.get("tool_calls", [])]
        if out["role"] == "tool":
            out["tool_call_id"] = _answered_call_id(message, open_calls)
        converted.append(out)
    return converted


def _message(message: Json, number: int) -> Json:
    out: Json = {"role": message["role"], "content": _content(message)}
    if calls := _field(message, "tool_calls", list):
        out["tool_calls"] = [_call(call, f"call_{number}_{index}") for index, call in enumerate(calls)]
    if thinking := message.get("thinking"):
        out["reasoning_content"] = thinking
    if name := message.get("tool_name") or message.get("name"):
        out["name"] = name
    return out


def _content(message: Json) -> str | list[Json]:
    text = _field(message, "content", str)
    images = _field(message, "images", list)
    if not images:
        return text
    parts: list[Json] = [{"type": "text", "text": text}] if text else []
    return parts + [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]


def _data_url(image: Any) -> str:
    if not isinstance(image, str):
        raise RouterError(400, "bad_request", "images: base64 texts are expected")
    if image.startswith("data:"):
        return image
    kind = next((kind for begin, kind in _IMAGES.items() if image.startswith(begin)), "png")
    return f"data:image/{kind};base64,{image}"


def _call(call: Any, call_id: str) -> Json:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RouterError(400, "bad_request", "tool_calls: a function with a name is expected")
    arguments = function.get("arguments") or {}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {
        "id": call.get("id") or call_id,
        "type": "function",
        "function": {"name": function["name"], "arguments": text},
    }


def _answered_call_id(message: Json, open_calls: list[tuple[str, str]]) -> str:
    """Id of the call that a tool's message answers: its own, or the oldest open one of that name."""
    if given := message.get("tool_call_id"):
        return str(given)
    name = message.get("tool_name") or message.get("name")
    call = next((call for call in open_calls if name in (None, call[0])), None)
    if call is None:
        return "call"
    open_calls.remove(call)
    return call[1]


def _field(body: Json, name: str, kind: type[T]) -> T:
    value = body.get(name)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        expected = "a text" if kind is str else "a list"
        raise RouterError(400, "bad_request", f"{name}: {expected} is expected")
    return value
