"""OpenAI's answers as Ollama's, whole or piece by piece. Pure: dictionaries in, dictionaries out.

What a server sends is checked first: an answer of another shape is an error (502), whatever its bytes.
Durations are nanoseconds there, milliseconds in llama.cpp's ``timings``; a server without ``timings`` gets no
durations, rather than guessed ones.
"""

import json
import math
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.common.text import first_error
from harness.router.errors import RouterError
from harness.router.http.json_body import Json

_NS_PER_MS = 1_000_000
_MOST_CALLS = 1000
_DEEPEST_ARGUMENTS = 100
_LONGEST_CALLS = 4 << 20
"""Characters of all calls of one answer."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Part(BaseModel):
    """A part of an answer; what is not read here is dropped."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Function(_Part):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _Call(_Part):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Message(_Part):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _TopLogprob(_Part):
    token: str
    logprob: Finite | None = None
    bytes: list[Count] | None = None


class _Logprob(_TopLogprob):
    id: int | None = None
    top_logprobs: list[_TopLogprob] = []


class _Logprobs(_Part):
    content: list[_Logprob] | None = None


class _Choice(_Part):
    message: _Message | None = None
    delta: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(_Part):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class _Timings(_Part):
    prompt_n: Count | None = None
    cache_n: Count | None = None
    predicted_n: Count | None = None
    prompt_ms: Annotated[float, Field(allow_inf_nan=False, le=1e12, ge=-1e12)] | None = None
    predicted_ms: Annotated[float, Field(allow_inf_nan=False, le=1e12, ge=-1e12)] | None = None


class _Infill(_Part):
    """llama-server's own answer of ``/infill``."""

    content: str
    stop: bool = False
    stop_type: str | None = None
    tokens_evaluated: Count = 0
    tokens_predicted: Count = 0
    timings: _Timings | None = None

    def as_answer(self) -> "_Answer":
        finish = ("length" if self.stop_type == "limit" else "stop") if self.stop else None
        answer = _Answer(choices=[_Choice(text=self.content, finish_reason=finish)])
        if finish:
            answer.usage = _Usage(
                prompt_tokens=self.tokens_evaluated, completion_tokens=self.tokens_predicted
            )
            answer.timings = self.timings
        return answer


class _Answer(_Part):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None


class _Embedding(_Part):
    index: int
    embedding: list[Finite]


class _Embeddings(_Part):
    data: list[_Embedding]
    usage: _Usage | None = None
    timings: _Timings | None = None


Part = TypeVar("Part", bound=_Part)


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
        RouterError: it holds no choice, or is no completion (502).
    """
    parsed = _parse(answer)
    if not parsed.choices:
        raise RouterError(502, "upstream", "the server's answer has no choices")
    choice = parsed.choices[0]
    piece, calls = _piece(choice)
    tool_calls, text = _ollama_calls([(call.id, call.function or _Function()) for call in calls])
    piece["content"] += text
    if tool_calls:
        piece["tool_calls"] = tool_calls
    tail = _tail(choice.finish_reason, parsed.usage, parsed.timings, total_ns=total_ns, load_ns=load_ns)
    return _head(model) | shape.of(piece) | _logprobs(choice) | tail


def done_answer(shape: Shape, model: str, reason: str) -> Json:
    """Ollama's answer to a request that only loads (``load``) or unloads (``unload``) a model."""
    return _head(model) | shape.of({"content": ""}) | {"done": True, "done_reason": reason}


class AnswerStream:
    """Turns the events of a streamed completion into Ollama's lines, one at a time."""

    def __init__(self, shape: Shape, model: str) -> None:
        self._shape = shape
        self._model = model
        self._finish: str | None = None
        self._usage: _Usage | None = None
        self._timings: _Timings | None = None
        self._calls: dict[int, tuple[str | None, _Function]] = {}
        self._calls_length = 0

    def event(self, event: Json) -> list[Json]:
        """Lines for one event: none, or a piece of the answer.

        Raises:
            RouterError: it is no event of a completion (502).
        """
        parsed = _parse(event)
        self._usage = parsed.usage or self._usage
        self._timings = parsed.timings or self._timings
        lines = []
        for choice in parsed.choices or []:
            piece, calls = _piece(choice)
            self._finish = choice.finish_reason or self._finish
            for call in calls:
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
        tail = _tail(self._finish, self._usage, self._timings, total_ns=total_ns, load_ns=load_ns)
        return [*lines, _head(self._model) | self._shape.of({"content": ""}) | tail]

    def _line(self, piece: Json) -> Json:
        return _head(self._model) | self._shape.of(piece) | {"done": False}

    def _add_call(self, call: _Call) -> None:
        index = len(self._calls) if call.index is None else call.index
        call_id, merged = self._calls.get(index, (None, _Function(name="", arguments="")))
        added = call.function or _Function()
        arguments = added.arguments or ""
        if not isinstance(arguments, str):
            raise RouterError(502, "upstream", "the server streams a tool call's arguments as an object")
        merged.name = f"{merged.name}{added.name or ''}"
        merged.arguments = f"{merged.arguments}{arguments}"
        self._calls[index] = (call_id or call.id, merged)
        self._calls_length += len(added.name or "") + len(arguments)
        if len(self._calls) > _MOST_CALLS or self._calls_length > _LONGEST_CALLS:
            raise RouterError(
                502, "upstream", "the server's answer has too many tool calls, or too long ones"
            )


def embed_answer(answer: Json, *, model: str, dimensions: Any, total_ns: int, load_ns: int) -> Json:
    """Embeddings as ``/api/embed`` gives them, in the order of the inputs; cut to ``dimensions`` if asked.

    Raises:
        RouterError: the answer is none (502).
    """
    if not isinstance(answer.get("data"), list):
        raise RouterError(502, "upstream", "the server's answer holds no embeddings")
    parsed = _checked(_Embeddings, answer)
    vectors = [entry.embedding for entry in sorted(parsed.data, key=lambda entry: entry.index)]
    if isinstance(dimensions, int) and dimensions > 0:
        vectors = [_unit(vector[:dimensions]) if dimensions < len(vector) else vector for vector in vectors]
    return {
        "model": model,
        "embeddings": vectors,
        "total_duration": total_ns,
        "load_duration": load_ns,
        "prompt_eval_count": _counts(parsed.usage, parsed.timings).get("prompt_eval_count", 0),
    }


def _unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [value / length for value in vector] if length else vector


def _parse(answer: Json) -> _Answer:
    """An answer of ``/v1``, or of llama-server's own ``/infill``."""
    if "choices" not in answer and isinstance(answer.get("content"), str):
        return _checked(_Infill, answer).as_answer()
    return _checked(_Answer, answer)


def _checked(kind: type[Part], answer: Json) -> Part:
    try:
        return kind.model_validate(answer)
    except ValidationError as error:
        message = f"the server's answer is not valid: {first_error(error, root='answer')}"
    except RecursionError:
        message = "the server's answer is nested too deeply"
    raise RouterError(502, "upstream", message[:500])


def _piece(choice: _Choice) -> tuple[Json, list[_Call]]:
    """Text and thinking of a choice, from any of the four places where servers put them; and its calls."""
    message = choice.message or choice.delta or _Message()
    piece: Json = {"content": message.content or choice.text or ""}
    if thinking := message.reasoning_content or message.reasoning:
        piece["thinking"] = thinking
    return piece, message.tool_calls or []


def _ollama_calls(functions: list[tuple[str | None, _Function]]) -> tuple[list[Json], str]:
    """Calls with their arguments as objects; the text of those that were cut off and are no calls."""
    calls: list[Json] = []
    text = ""
    for call_id, function in functions:
        name, arguments = function.name or "", function.arguments or "{}"
        parsed = _object(arguments)
        if parsed is None:
            text += f"{name}({arguments})"
        else:
            named = {"id": call_id} if call_id else {}
            calls.append(named | {"function": {"name": name, "arguments": parsed}})
    return calls, text


def _object(arguments: str | Json) -> Json | None:
    """Arguments as an object that can be sent on; None where they are none."""
    try:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        parsed = json.loads(text, parse_constant=_number, parse_float=_number)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) and not _deeper(parsed, _DEEPEST_ARGUMENTS) else None


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def _deeper(value: object, levels: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(not levels or _deeper(item, levels - 1) for item in items)


def _logprobs(choice: _Choice) -> Json:
    content = choice.logprobs.content if choice.logprobs else None
    return {"logprobs": [entry.model_dump(exclude_unset=True) for entry in content]} if content else {}


def _head(model: str) -> Json:
    return {"model": model, "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def _tail(
    finish: str | None, usage: _Usage | None, timings: _Timings | None, *, total_ns: int, load_ns: int
) -> Json:
    return {
        "done": True,
        "done_reason": "length" if finish == "length" else "stop",
        "total_duration": total_ns,
        "load_duration": load_ns,
        **_counts(usage, timings),
    }


def _counts(usage: _Usage | None, timings: _Timings | None) -> Json:
    usage, timings = usage or _Usage(), timings or _Timings()
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if prompt is None and timings.prompt_n is not None:
        prompt = timings.prompt_n + (timings.cache_n or 0)
        completion = timings.predicted_n if completion is None else completion
    counts: Json = {"prompt_eval_count": prompt, "eval_count": completion}
    for name, milliseconds in (
        ("prompt_eval_duration", timings.prompt_ms),
        ("eval_duration", timings.predicted_ms),
    ):
        counts[name] = None if milliseconds is None else round(milliseconds * _NS_PER_MS)
    return {name: value for name, value in counts.items() if value is not None}
