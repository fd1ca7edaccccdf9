from typing import Any

import pytest
from harness.router.ollama import ChatStream, chat_answer, openai_request


def completion(**choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "Hi"}
    return {
        "choices": [{"index": 0, "finish_reason": "stop", "message": message} | choice],
        "usage": {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14},
        "timings": {"prompt_n": 1, "prompt_ms": 64.388, "predicted_n": 4, "predicted_ms": 54.701},
    }


def test_chat_streams_unless_told_otherwise() -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    assert openai_request(asked)["stream"] is True
    assert openai_request(asked)["stream_options"] == {"include_usage": True}
    assert openai_request(asked | {"stream": False})["stream"] is False


def test_options_take_their_openai_names() -> None:
    options = {"num_predict": 7, "temperature": 0, "stop": ["x"], "num_ctx": 4096}
    request = openai_request({"model": "m", "messages": [], "options": options})
    assert (request["max_tokens"], request["temperature"], request["stop"]) == (7, 0, ["x"])
    assert "num_ctx" not in request


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("json", {"type": "json_object"}),
        ({"type": "object"}, {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}),
    ],
)
def test_format_becomes_response_format(wanted: Any, expected: Any) -> None:
    assert openai_request({"model": "m", "messages": [], "format": wanted})["response_format"] == expected


def test_images_and_tool_calls_of_messages_are_converted() -> None:
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    messages = [
        {"role": "user", "content": "see", "images": ["AAAA"]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    seen, called = openai_request({"model": "m", "messages": messages})["messages"]
    assert seen["content"][1]["image_url"]["url"] == "data:image/png;base64,AAAA"
    assert called["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}


def test_answer_has_durations_in_nanoseconds_and_the_servers_counts() -> None:
    answer = chat_answer(completion(), model="m", total_ns=200_000_000, load_ns=5)
    assert answer["message"] == {"role": "assistant", "content": "Hi"}
    assert (answer["done"], answer["done_reason"]) == (True, "stop")
    assert answer["prompt_eval_duration"] == 64_388_000
    assert answer["eval_duration"] == 54_701_000
    assert (answer["prompt_eval_count"], answer["eval_count"]) == (10, 4)
    assert (answer["total_duration"], answer["load_duration"]) == (200_000_000, 5)


def test_cut_answer_says_length() -> None:
    answer = chat_answer(completion(finish_reason="length"), model="m", total_ns=1, load_ns=0)
    assert answer["done_reason"] == "length"


def test_arguments_of_a_called_tool_are_an_object() -> None:
    message = {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}
    answer = chat_answer(completion(message=message), model="m", total_ns=1, load_ns=0)
    assert answer["message"]["tool_calls"] == [{"function": {"name": "f", "arguments": {"x": 1}}}]
    assert answer["message"]["content"] == ""


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": None, "delta": fields}]}


def test_stream_gives_a_line_per_piece_and_the_counts_last() -> None:
    stream = ChatStream("m")
    assert stream.event(delta(role="assistant", content=None)) == []
    (line,) = stream.event(delta(content="Hi"))
    assert (line["message"]["content"], line["done"]) == ("Hi", False)
    stream.event({"choices": [{"index": 0, "finish_reason": "length", "delta": {}}]})
    stream.event({**completion(), "choices": []})
    (last,) = stream.end(total_ns=9, load_ns=3)
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", 4)
    assert last["eval_duration"] == 54_701_000


def test_tool_call_that_comes_in_pieces_is_put_together() -> None:
    stream = ChatStream("m")
    stream.event(delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": '{"x"'}}]))
    stream.event(delta(tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}]))
    calls, _ = stream.end(total_ns=1, load_ns=0)
    assert calls["message"]["tool_calls"] == [{"function": {"name": "f", "arguments": {"x": 1}}}]
