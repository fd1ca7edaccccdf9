"""Properties of the conversion between the two APIs, whatever is said and however it is cut."""

import json
from typing import Any

from harness.router.api.ollama.request import chat_request, generate_request, without_effect
from harness.router.api.ollama.response import AnswerStream, Shape, whole_answer
from harness.router.http.json_body import dump, line, parse_object
from harness.router.proxy.stream import Events
from hypothesis import given, settings
from hypothesis import strategies as st

Json = dict[str, Any]

texts = st.text(max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(texts, values, max_size=3)
names = st.text("abcdefg_", min_size=1, max_size=8)
calls = st.builds(lambda name, given: {"function": {"name": name, "arguments": given}}, names, arguments)
microseconds = st.integers(0, 10**10)
"""llama-server's timings are milliseconds with three decimals."""


@st.composite
def cut(draw: st.DrawFn, whole: bytes) -> list[bytes]:
    """The same bytes in pieces, cut anywhere."""
    places = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    return [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]


@st.composite
def cut_text(draw: st.DrawFn, whole: str) -> list[str]:
    """A text as the pieces of its deltas."""
    places = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    return [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]


@st.composite
def answers(draw: st.DrawFn) -> Json:
    """A whole chat completion of llama-server."""
    called = draw(st.lists(calls, max_size=3))
    wire = [
        {"id": f"id{index}", "type": "function", "function": call["function"] | {"arguments": encoded}}
        for index, call in enumerate(called)
        for encoded in [json.dumps(call["function"]["arguments"])]
    ]
    message = {"role": "assistant", "content": draw(texts), "reasoning_content": draw(texts)}
    prompt, completion = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))
    return {
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls" if wire else draw(st.sampled_from(["stop", "length"])),
                "message": message | ({"tool_calls": wire} if wire else {}),
            }
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion},
        "timings": {"prompt_ms": draw(microseconds) / 1000, "predicted_ms": draw(microseconds) / 1000},
    }


@st.composite
def streamed(draw: st.DrawFn, answer: Json) -> bytes:
    """The same answer as server-sent events: each text and each call's arguments in any pieces."""
    (choice,) = answer["choices"]
    message = choice["message"]
    deltas: list[Json] = [{"role": "assistant", "content": None}]
    deltas += [{"reasoning_content": piece} for piece in draw(cut_text(message["reasoning_content"]))]
    deltas += [{"content": piece} for piece in draw(cut_text(message["content"]))]
    for index, call in enumerate(message.get("tool_calls", [])):
        function = call["function"]
        first = {"index": index, "id": call["id"], "function": {"name": function["name"], "arguments": ""}}
        deltas.append({"tool_calls": [first]})
        for piece in draw(cut_text(function["arguments"])):
            deltas.append({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    events: list[Json] = [{"choices": [{"index": 0, "finish_reason": None, "delta": one}]} for one in deltas]
    events.append({"choices": [{"index": 0, "finish_reason": choice["finish_reason"], "delta": {}}]})
    events.append({"choices": [], "usage": answer["usage"], "timings": answer["timings"]})
    ascii_only, end = draw(st.booleans()), draw(st.sampled_from(["\n\n", "\r\n\r\n"]))
    parts = [f"data: {json.dumps(event, ensure_ascii=ascii_only)}{end}" for event in events]
    return ("".join(parts) + f"data: [DONE]{end}").encode()


def converted(pieces: list[bytes], shape: Shape) -> list[Json]:
    """Lines that a client of the Ollama API reads."""
    events, stream, lines = Events(), AnswerStream(shape, "m"), []
    data = [event for piece in pieces for event in events.feed(piece)] + events.end()
    for event in data:
        if event != b"[DONE]":
            lines += stream.event(json.loads(event))
    lines += stream.end(total_ns=7, load_ns=3)
    return [json.loads(line(one)) for one in lines]


@settings(max_examples=50)
@given(st.data())
def test_stream_cut_anywhere_says_what_the_whole_answer_says(data: st.DataObject) -> None:
    answer = data.draw(answers())
    pieces = data.draw(cut(data.draw(streamed(answer))))
    whole = whole_answer(Shape.CHAT, answer, model="m", total_ns=7, load_ns=3)
    lines = converted(pieces, Shape.CHAT)
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    said = [line["message"] for line in lines]
    assert "".join(piece["content"] for piece in said) == whole["message"]["content"]
    assert "".join(piece.get("thinking", "") for piece in said) == whole["message"].get("thinking", "")
    called = [call for piece in said for call in piece.get("tool_calls", [])]
    assert called == whole["message"].get("tool_calls", [])
    told = {"message", "created_at"}
    assert {k: v for k, v in lines[-1].items() if k not in told} == {
        k: v for k, v in whole.items() if k not in told
    }


@given(st.data())
def test_generated_text_is_the_same_however_it_comes(data: st.DataObject) -> None:
    answer = data.draw(answers())
    answer["choices"][0]["message"].pop("tool_calls", None)
    pieces = data.draw(cut(data.draw(streamed(answer))))
    whole = whole_answer(Shape.GENERATE, answer, model="m", total_ns=7, load_ns=3)
    assert "".join(line["response"] for line in converted(pieces, Shape.GENERATE)) == whole["response"]


@given(answers(), microseconds, microseconds, st.integers(0, 10**12), st.integers(0, 10**12))
def test_counts_and_durations_are_exact(
    answer: Json, prompt_us: int, predicted_us: int, total_ns: int, load_ns: int
) -> None:
    answer["timings"] = {"prompt_ms": prompt_us / 1000, "predicted_ms": predicted_us / 1000}
    made = whole_answer(Shape.CHAT, answer, model="m", total_ns=total_ns, load_ns=load_ns)
    assert (made["prompt_eval_duration"], made["eval_duration"]) == (prompt_us * 1000, predicted_us * 1000)
    assert made["prompt_eval_count"] == answer["usage"]["prompt_tokens"]
    assert made["eval_count"] == answer["usage"]["completion_tokens"]
    assert (made["total_duration"], made["load_duration"]) == (total_ns, load_ns)
    finish = answer["choices"][0]["finish_reason"]
    assert made["done_reason"] == ("length" if finish == "length" else "stop")


@given(texts, st.lists(calls, max_size=4), st.data())
def test_conversation_that_is_sent_back_means_the_same(
    text: str, called: list[Json], data: st.DataObject
) -> None:
    results = [
        {"role": "tool", "tool_name": call["function"]["name"], "content": str(number)}
        for number, call in enumerate(called)
    ]
    messages = [
        {"role": "user", "content": text},
        {"role": "assistant", "content": text, "tool_calls": called},
        *data.draw(st.permutations(results)),
    ]
    user, assistant, *answered = chat_request({"model": "m", "messages": messages})["messages"]
    assert (user["content"], assistant["content"]) == (text, text)
    sent = assistant.get("tool_calls", [])
    assert [json.loads(call["function"]["arguments"]) for call in sent] == [
        call["function"]["arguments"] for call in called
    ]
    ids = [call["id"] for call in sent]
    assert len(set(ids)) == len(ids)
    assert sorted(answer["tool_call_id"] for answer in answered) == sorted(ids)
    of = {call["id"]: call["function"]["name"] for call in sent}
    assert all(of[answer["tool_call_id"]] == answer["name"] for answer in answered)


@given(st.dictionaries(names, values, max_size=5), texts)
def test_fields_that_nobody_knows_are_not_passed_on_but_named(unknown: Json, prompt: str) -> None:
    body = {"options": unknown | {"top_k": 3}, "prompt": prompt, "model": "m", "surprise": 1}
    request = generate_request(body)
    assert request["messages"] == [{"role": "user", "content": prompt}]
    assert set(request) == {"messages", "model", "stream", "stream_options", "top_k"}
    assert without_effect(body) == ["surprise", *(f"options.{name}" for name in unknown)]


@given(values)
def test_what_is_written_is_read_again(value: Any) -> None:
    assert parse_object(dump({"value": value})) == {"value": value}


@given(st.text(st.characters(categories=["Cs", "L", "So"]), max_size=20))
def test_any_text_can_be_written(text: str) -> None:
    written = json.loads(dump({"text": text}))["text"]
    assert written == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
