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
    """Where an answer's text stands: in ``message`` (chat) or in ``response`` (generate)."""

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
    known, text = _ollama_calls([_function(call) | {"id": call.get("id")} for call in calls])
    piece["content"] += text
    if known:
        piece["tool_calls"] = known
    tail = _tail(choice[0].get("finish_reason"), _native(answer), total_ns=total_ns, load_ns=load_ns)
    return _head(model) | shape.of(piece) | _logprobs(choice[0]) | tail


def done_answer(shape: Shape, model: str, reason: str) -> Json:
    """What Ollama says to a request that only loads (``load``) or unloads (``unload``) a model."""
    return _head(model) | shape.of({"content": ""}) | {"done": True, "done_reason": reason}


class AnswerStream:
    """Turns the events of a streamed completion into Ollama's lines, one at a time."""

    def __init__(self, shape: Shape, model: str) -> None:
        self._shape = shape
        self._model = model
        self._finish: str | None = None
        self._last: Json = {}
        self._calls: dict[int, Json] = {}

    def check_finished(self) -> None:
        """Nothing more comes.

        Raises:
            RouterError: the server has not said why it stopped: its answer was cut off (502).
        """
        if self._finish is None:
            raise RouterError(502, "upstream", "the server ended its answer without a reason to stop")

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
        """The last lines: tool calls, if there were any, and the counts and durations."""
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
        known = self._calls.setdefault(
            index if isinstance(index, int) else len(self._calls), {"id": None, "name": "", "arguments": ""}
        )
        function = _function(call)
        known["id"] = known["id"] or call.get("id")
        known["name"] += function.get("name") or ""
        known["arguments"] += function.get("arguments") or ""


def embed_answer(answer: Json, *, model: str, dimensions: Any, total_ns: int, load_ns: int) -> Json:
    """Embeddings as ``/api/embed`` gives them, in the order of the inputs; cut to ``dimensions`` if asked.

    Raises:
        RouterError: the answer is none (502).
    """
    try:
        data = sorted(answer["data"], key=lambda one: one["index"])
        vectors = [[float(value) for value in one["embedding"]] for one in data]
    except (KeyError, TypeError, ValueError):
        raise RouterError(502, "upstream", "the server's answer holds no embeddings") from None
    if isinstance(dimensions, int) and dimensions > 0:
        vectors = [_unit(vector[:dimensions]) if dimensions < len(vector) else vector for vector in vectors]
    counts = _counts(answer)
    return {
        "model": model,
        "embeddings": vectors,
        "total_duration": total_ns,
        "load_duration": load_ns,
        "prompt_eval_count": counts.get("prompt_eval_count", 0),
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
    return [one for one in choices if isinstance(one, dict)] if isinstance(choices, list) else []


def _piece(choice: Json) -> Json:
    """Text, thinking and calls of a choice, whichever of its four places they stand in."""
    said = choice.get("message") or choice.get("delta") or {}
    content = said.get("content") or choice.get("text") or ""
    piece: Json = {"content": content}
    if thinking := said.get("reasoning_content") or said.get("reasoning"):
        piece["thinking"] = thinking
    if calls := said.get("tool_calls"):
        piece["tool_calls"] = calls
    return piece


def _function(call: Json) -> Json:
    return call.get("function") or {}


def _ollama_calls(functions: list[Json]) -> tuple[list[Json], str]:
    """Calls with their arguments as objects; the text of those that were cut off and are no calls."""
    calls, text = [], ""
    for function in functions:
        name, arguments = function.get("name") or "", function.get("arguments") or "{}"
        parsed = _object(arguments)
        if parsed is None:
            text += f"{name}({arguments})"
        else:
            known = {"id": function["id"]} if function.get("id") else {}
            calls.append(known | {"function": {"name": name, "arguments": parsed}})
    return calls, text


def _object(arguments: Any) -> Json | None:
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _logprobs(choice: Json) -> Json:
    found = choice.get("logprobs")
    content = found.get("content") if isinstance(found, dict) else None
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
    found = {
        "prompt_eval_count": usage.get("prompt_tokens"),
        "prompt_eval_duration": _nanoseconds(timings.get("prompt_ms")),
        "eval_count": usage.get("completion_tokens"),
        "eval_duration": _nanoseconds(timings.get("predicted_ms")),
    }
    return {name: value for name, value in found.items() if value is not None}


def _nanoseconds(milliseconds: float | None) -> int | None:
    return None if milliseconds is None else round(milliseconds * _NS_PER_MS)
