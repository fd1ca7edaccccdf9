"""Ollama's requests as OpenAI's. Pure: dictionaries in, dictionaries out.

Ollama: https://github.com/ollama/ollama/blob/main/docs/api.md. What only Ollama can do is left out:
``template`` and ``context`` (the server keeps its own prompt cache), ``truncate``, and options that belong
to a load, such as ``num_ctx``, which the plan decides. Options that Ollama does not know keep their names.
"""

import json
from collections.abc import Iterable
from typing import Any

from harness.router.errors import RouterError
from harness.router.http.json_body import Json

_RENAMED = {"num_predict": "max_tokens", "num_keep": "n_keep"}
_OF_A_LOAD = frozenset(
    {
        "numa", "num_ctx", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "logits_all",
        "vocab_only", "use_mmap", "use_mlock", "embedding_only", "num_thread", "penalize_newline", "tfs_z",
    }
)  # fmt: skip
_IMAGES = {"/9j/": "jpeg", "iVBOR": "png", "R0lGOD": "gif", "UklGR": "webp"}
"""How base64 of each format begins."""


def streams(body: Json) -> bool:
    """Whether the answer is to be a stream: yes, unless it is said otherwise."""
    return body.get("stream") is not False


def loads_only(body: Json) -> bool:
    """Whether there is nothing to answer: the model is to be loaded, or with ``keep_alive`` 0 unloaded."""
    return not any(body.get(part) for part in ("messages", "prompt", "images", "suffix", "input"))


def unloads(body: Json) -> bool:
    """Whether ``keep_alive`` is zero: a number, or a duration like ``0s``."""
    wanted = body.get("keep_alive")
    if isinstance(wanted, str):
        return wanted.strip("+-0.hmnsuµ") == "" and "0" in wanted
    return isinstance(wanted, int | float) and not isinstance(wanted, bool) and wanted == 0


def chat_request(body: Json) -> Json:
    """The chat completion that asks for the same as this ``/api/chat`` body.

    Raises:
        RouterError: a message, a tool or the format is none (400).
    """
    messages = _items(body, "messages")
    request = _common(body) | {"messages": _messages(messages)}
    if tools := _items(body, "tools"):
        request["tools"] = tools
    return request | _format(body) | _think(body) | _logprobs(body)


def generate_request(body: Json) -> Json:
    """The chat completion for a ``/api/generate`` body: its prompt is what the user says.

    Raises:
        RouterError: the prompt, the images or the format is none (400).
    """
    said: Json = {"role": "user", "content": _text(body, "prompt"), "images": body.get("images")}
    system = _text(body, "system")
    messages = [{"role": "system", "content": system}] if system else []
    request = _common(body) | {"messages": _messages([*messages, said])}
    return request | _format(body) | _think(body) | _logprobs(body)


def raw_request(body: Json) -> Json:
    """The completion for a ``/api/generate`` body with ``raw``: the prompt without any template.

    Raises:
        RouterError: the prompt or the format is none, or there are images, which need a template (400).
    """
    if body.get("images"):
        raise RouterError(400, "bad_request", "raw mode does not support images")
    request = _common(body) | {"prompt": _text(body, "prompt")} | _format(body)
    if body.get("logprobs"):
        request["logprobs"] = body.get("top_logprobs") or 1
    return request


def insert_request(body: Json) -> Json:
    """llama-server's ``/infill`` for a ``/api/generate`` body with ``suffix``."""
    request = _common(body)
    return request | {
        "n_predict": request.get("max_tokens", -1),
        "prompt": "",
        "input_prefix": _text(body, "prompt"),
        "input_suffix": _text(body, "suffix"),
    }


def embed_request(body: Json, text: Any) -> Json:
    """The embeddings request for a text or texts.

    Raises:
        RouterError: it is neither (400).
    """
    texts = text if isinstance(text, list) else [text]
    if not all(isinstance(one, str) for one in texts):
        raise RouterError(400, "bad_request", "invalid input type: a text or a list of texts is expected")
    return {"model": body["model"], "input": text, "encoding_format": "float"}


def _common(body: Json) -> Json:
    given = body.get("options") or {}
    if not isinstance(given, dict):
        raise RouterError(400, "bad_request", "options: an object is expected")
    options: Json = {name: value for name, value in given.items() if value is not None}
    request = {_RENAMED.get(name, name): options[name] for name in options if name not in _OF_A_LOAD}
    limit = request.get("max_tokens")
    if isinstance(limit, int) and limit <= 0:
        del request["max_tokens"]  # zero and below: no limit
    request |= {"model": body["model"], "stream": streams(body)}
    if request["stream"]:
        request["stream_options"] = {"include_usage": True}
    return request


def _format(body: Json) -> Json:
    wanted = body.get("format")
    if not wanted:
        return {}
    if wanted == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(wanted, dict):
        schema = {"name": "format", "schema": wanted}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    message = f'invalid format: {json.dumps(wanted)}; expected "json" or a valid JSON Schema object'
    raise RouterError(400, "bad_request", message)


def _think(body: Json) -> Json:
    think = body.get("think")
    if think is None:
        return {}
    asked: Json = {"enable_thinking": bool(think)}
    if isinstance(think, str):
        asked["reasoning_effort"] = think
    return {"chat_template_kwargs": asked}


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
            out["tool_call_id"] = _answered(message, open_calls)
        converted.append(out)
    return converted


def _message(message: Json, number: int) -> Json:
    out: Json = {"role": message["role"], "content": _content(message)}
    if calls := _items(message, "tool_calls"):
        out["tool_calls"] = [_call(call, f"call_{number}_{index}") for index, call in enumerate(calls)]
    if thinking := message.get("thinking"):
        out["reasoning_content"] = thinking
    if name := message.get("tool_name") or message.get("name"):
        out["name"] = name
    return out


def _content(message: Json) -> str | list[Json]:
    text = _text(message, "content")
    images = _items(message, "images")
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


def _answered(message: Json, open_calls: list[tuple[str, str]]) -> str:
    """Id of the call that a tool's message answers: its own, or the oldest open one of that name."""
    if given := message.get("tool_call_id"):
        return str(given)
    name = message.get("tool_name") or message.get("name")
    found = next((call for call in open_calls if name in (None, call[0])), None)
    if found is None:
        return "call"
    open_calls.remove(found)
    return found[1]


def _text(body: Json, name: str) -> str:
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RouterError(400, "bad_request", f"{name}: a text is expected")
    return value


def _items(body: Json, name: str) -> list[Any]:
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise RouterError(400, "bad_request", f"{name}: a list is expected")
    return value
