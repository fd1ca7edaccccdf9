"""Ollama's /api/chat as OpenAI's chat completion, and back. Pure: dictionaries in, dictionaries out.

Ollama: https://github.com/ollama/ollama/blob/main/docs/api.md. Durations there are nanoseconds; llama.cpp's
``timings`` are milliseconds.
"""

import json
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]

_OPTIONS = {
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "typical_p": "typical_p",
}
_NS_PER_MS = 1_000_000


def openai_request(body: Json) -> Json:
    """The chat completion that asks for the same as this ``/api/chat`` body."""
    stream = body.get("stream", True)
    request: Json = {
        "model": body["model"],
        "messages": [_openai_message(message) for message in body.get("messages", [])],
        "stream": stream,
    }
    if stream:
        request["stream_options"] = {"include_usage": True}
    options = body.get("options") or {}
    request |= {theirs: options[ours] for ours, theirs in _OPTIONS.items() if ours in options}
    if tools := body.get("tools"):
        request["tools"] = tools
    wanted = body.get("format")
    if wanted == "json":
        request["response_format"] = {"type": "json_object"}
    elif isinstance(wanted, dict):
        request["response_format"] = {"type": "json_schema", "json_schema": {"schema": wanted}}
    return request


def _openai_message(message: Json) -> Json:
    out: Json = {"role": message["role"], "content": message.get("content", "")}
    if images := message.get("images"):
        text = [{"type": "text", "text": out["content"]}]
        out["content"] = text + [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}} for image in images
        ]
    if calls := message.get("tool_calls"):
        out["tool_calls"] = [
            {
                "id": call.get("id", f"call_{index}"),
                "type": "function",
                "function": call["function"]
                | {"arguments": json.dumps(call["function"].get("arguments", {}))},
            }
            for index, call in enumerate(calls)
        ]
    return out


def chat_answer(answer: Json, *, model: str, total_ns: int, load_ns: int) -> Json:
    """A whole chat completion as Ollama's single object."""
    choice = answer["choices"][0]
    message: Json = {"role": "assistant", "content": choice["message"].get("content") or ""}
    if calls := choice["message"].get("tool_calls"):
        message["tool_calls"] = [_ollama_call(call["function"]) for call in calls]
    return _head(model) | {
        "message": message,
        **_tail(choice.get("finish_reason"), answer, total_ns=total_ns, load_ns=load_ns),
    }


def loaded_answer(model: str) -> Json:
    """What Ollama says to a chat without messages, which only loads the model."""
    return _head(model) | {
        "message": {"role": "assistant", "content": ""},
        "done_reason": "load",
        "done": True,
    }


class ChatStream:
    """Turns the events of a streamed chat completion into Ollama's lines, one at a time."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._finish: str | None = None
        self._last: Json = {}
        self._calls: dict[int, Json] = {}

    def event(self, event: Json) -> list[Json]:
        """Lines for one event: none, or a piece of the message."""
        self._last |= {key: event[key] for key in ("usage", "timings") if event.get(key)}
        lines = []
        for choice in event.get("choices", []):
            delta = choice.get("delta", {})
            self._finish = choice.get("finish_reason") or self._finish
            for call in delta.get("tool_calls") or []:
                self._add_call(call)
            if delta.get("content"):
                lines.append(self._line({"content": delta["content"]}))
        return lines

    def end(self, *, total_ns: int, load_ns: int) -> list[Json]:
        """The last lines: tool calls, if there were any, and the counts and durations."""
        lines = []
        if self._calls:
            calls = [_ollama_call(self._calls[index]) for index in sorted(self._calls)]
            lines.append(self._line({"content": "", "tool_calls": calls}))
        message = {"message": {"role": "assistant", "content": ""}}
        tail = _tail(self._finish, self._last, total_ns=total_ns, load_ns=load_ns)
        return [*lines, _head(self._model) | message | tail]

    def _line(self, message: Json) -> Json:
        return _head(self._model) | {"message": {"role": "assistant"} | message, "done": False}

    def _add_call(self, call: Json) -> None:
        known = self._calls.setdefault(call.get("index", 0), {"name": "", "arguments": ""})
        function = call.get("function", {})
        known["name"] += function.get("name") or ""
        known["arguments"] += function.get("arguments") or ""


def _ollama_call(function: Json) -> Json:
    arguments = function.get("arguments") or "{}"
    parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    return {"function": {"name": function["name"], "arguments": parsed}}


def _head(model: str) -> Json:
    return {"model": model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def _tail(finish: str | None, answer: Json, *, total_ns: int, load_ns: int) -> Json:
    usage, timings = answer.get("usage") or {}, answer.get("timings") or {}
    return {
        "done_reason": "length" if finish == "length" else "stop",
        "done": True,
        "total_duration": total_ns,
        "load_duration": load_ns,
        "prompt_eval_count": usage.get("prompt_tokens", timings.get("prompt_n", 0)),
        "prompt_eval_duration": round(timings.get("prompt_ms", 0) * _NS_PER_MS),
        "eval_count": usage.get("completion_tokens", timings.get("predicted_n", 0)),
        "eval_duration": round(timings.get("predicted_ms", 0) * _NS_PER_MS),
    }
