"""OpenAI's answers as Ollama's, whole or piece by piece. Pure: dictionaries in, dictionaries out.

Durations are nanoseconds there, milliseconds in llama.cpp's ``timings``; a server without ``timings`` gets no
durations, rather than guessed ones.
"""

import json
import math
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from harness.router.errors import RouterError
from harness.router.http.json_body import Json

_NS_PER_MS = 1_000_000


class Shape(Enum):
    """Where the text of an answer is: in ``message`` (chat) or in ``response`` (generate)."""

    CHAT = "chat"
    GENERATE = "generate"

    def of(self, piece: Json) -> Json:
        """A piece with ``content`` (and perhaps ``thinking``, ``tool_calls``) in this shape."""
        if self is Shape.CHAT:
            return {"message": {"role": "assistant"} | piece}
        rest = {name: value for name, value in piece.items() if name == "thinking"}
        return {"response": piece["content"]} | rest


def whole_answer(shape: Shape, answer: Json, *, model: str, total_ns: int, load_ns: int) -> Json:
    """A whole completion as Ollama's single object.

    Raises:
        RouterError: it holds no choice (502).
    """
    choice = _choices(_native(answer))
    if not choice:
        raise RouterError(502, "upstream", "the server's answer has no choices")
    piece = _piece(choice[0])
    calls = piece.pop("tool_calls", [])
    tool_calls, text = _ollama_calls(
        [(call.get("function") or {}) | {"id": call.get("id")} for call in calls]
    )
    piece["content"] += text
    if tool_calls:
        piece["tool_calls"] = tool_calls
    tail = _tail(choice[0].get("finish_reason"), _native(answer), total_ns=total_ns, load_ns=load_ns)
    return _head(model) | shape.of(piece) | _logprobs(choice[0]) | tail


def done_answer(shape: Shape, model: str, reason: str) -> Json:
    """Ollama's answer to a request that only loads (``load``) or unloads (``unload``) a model."""
    return _head(model) | shape.of({"content": ""}) | {"done": True, "done_reason": reason}


class AnswerStream:
    """Turns the events of a streamed completion into Ollama's lines, one at a time."""

    def __init__(self, shape: Shape, model: str) -> None:
        self._shape = shape
        self._model = model
        self._finish: str | None = None
        self._last: Json = {}
        self._calls: dict[int, Json] = {}

    def event(self, event: Json) -> list[Json]:
        """Lines for one event: none, or a piece of the answer."""
        event = _native(event)
        self._last |= {key: event[key] for key in ("usage", "timings") if event.get(key)}
        lines = []
        for choice in _choices(event):
            piece = _piece(choice)
            self._finish = choice.get("finish_reason") or self._finish
            for call in piece.pop("tool_calls", []):
                self._add_call(call)
            if any(piece.values()):
                lines.append(self._line(piece) | _logprobs(choice))
        return lines

    def end(self, *, total_ns: int, load_ns: int) -> list[Json]:
        """The last lines: tool calls, if there were any, and the counts and durations.

        Raises:
            RouterError: no event had a finish reason: the answer was cut off (502).
        """
        if self._finish is None:
            raise RouterError(502, "upstream", "the server ended its answer without a reason to stop")
        lines = []
        calls, text = _ollama_calls([self._calls[index] for index in sorted(self._calls)])
        if calls or text:
            piece: Json = {"content": text} | ({"tool_calls": calls} if calls else {})
            lines.append(self._line(piece))
        tail = _tail(self._finish, self._last, total_ns=total_ns, load_ns=load_ns)
        return [*lines, _head(self._model) | self._shape.of({"content": ""}) | tail]

    def _line(self, piece: Json) -> Json:
        return _head(self._model) | self._shape.of(piece) | {"done": False}

    def _add_call(self, call: Json) -> None:
        index = call.get("index")
        merged = self._calls.setdefault(
            index if isinstance(index, int) else len(self._calls), {"id": None, "name": "", "arguments": ""}
        )
        function = call.get("function") or {}
        merged["id"] = merged["id"] or call.get("id")
        merged["name"] += function.get("name") or ""
        merged["arguments"] += function.get("arguments") or ""


def embed_answer(answer: Json, *, model: str, dimensions: Any, total_ns: int, load_ns: int) -> Json:
    """Embeddings as ``/api/embed`` gives them, in the order of the inputs; cut to ``dimensions`` if asked.

    Raises:
        RouterError: the answer is none (502).
    """
    try:
        data = sorted(answer["data"], key=lambda entry: entry["index"])
        vectors = [[float(value) for value in entry["embedding"]] for entry in data]
    except (KeyError, TypeError, ValueError):
        raise RouterError(502, "upstream", "the server's answer holds no embeddings") from None
    if isinstance(dimensions, int) and dimensions > 0:
        vectors = [_unit(vector[:dimensions]) if dimensions < len(vector) else vector for vector in vectors]
    return {
        "model": model,
        "embeddings": vectors,
        "total_duration": total_ns,
        "load_duration": load_ns,
        "prompt_eval_count": _counts(answer).get("prompt_eval_count", 0),
    }


def _unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [value / length for value in vector] if length else vector


def _native(answer: Json) -> Json:
    """An answer of llama-server's own ``/infill`` in the shape of a completion; any other as it is."""
    if "choices" in answer or not isinstance(answer.get("content"), str):
        return answer
    finish = ("length" if answer.get("stop_type") == "limit" else "stop") if answer.get("stop") else None
    out: Json = {"choices": [{"text": answer["content"], "finish_reason": finish}]}
    if finish:
        prompt, completion = answer.get("tokens_evaluated", 0), answer.get("tokens_predicted", 0)
        out["usage"] = {"prompt_tokens": prompt, "completion_tokens": completion}
        out["timings"] = answer.get("timings")
    return out


def _choices(answer: Json) -> list[Json]:
    choices = answer.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _piece(choice: Json) -> Json:
    """Text, thinking and calls of a choice, from any of the four places where servers put them."""
    message = choice.get("message") or choice.get("delta") or {}
    content = message.get("content") or choice.get("text") or ""
    piece: Json = {"content": content}
    if thinking := message.get("reasoning_content") or message.get("reasoning"):
        piece["thinking"] = thinking
    if calls := message.get("tool_calls"):
        piece["tool_calls"] = calls
    return piece


def _ollama_calls(functions: list[Json]) -> tuple[list[Json], str]:
    """Calls with their arguments as objects; the text of those that were cut off and are no calls."""
    calls, text = [], ""
    for function in functions:
        name, arguments = function.get("name") or "", function.get("arguments") or "{}"
        parsed = _object(arguments)
        if parsed is None:
            text += f"{name}({arguments})"
        else:
            call_id = {"id": function["id"]} if function.get("id") else {}
            calls.append(call_id | {"function": {"name": name, "arguments": parsed}})
    return calls, text


def _object(arguments: Any) -> Json | None:
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _logprobs(choice: Json) -> Json:
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return {"logprobs": content} if content else {}


def _head(model: str) -> Json:
    return {"model": model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def _tail(finish: str | None, answer: Json, *, total_ns: int, load_ns: int) -> Json:
    return {
        "done": True,
        "done_reason": "length" if finish == "length" else "stop",
        "total_duration": total_ns,
        "load_duration": load_ns,
        **_counts(answer),
    }


def _counts(answer: Json) -> Json:
    usage, timings = answer.get("usage") or {}, answer.get("timings") or {}
    if "prompt_tokens" not in usage and "prompt_n" in timings:
        usage = {
            "prompt_tokens": timings["prompt_n"] + timings.get("cache_n", 0),
            "completion_tokens": timings.get("predicted_n"),
        } | usage
    counts = {
        "prompt_eval_count": usage.get("prompt_tokens"),
        "eval_count": usage.get("completion_tokens"),
    }
    for name, key in (("prompt_eval_duration", "prompt_ms"), ("eval_duration", "predicted_ms")):
        if timings.get(key) is not None:
            counts[name] = round(timings[key] * _NS_PER_MS)
    return {name: value for name, value in counts.items() if value is not None}
