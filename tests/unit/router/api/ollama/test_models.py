from typing import Any

import pytest
from harness.router.api.ollama.request import (
    chat_request,
    embed_request,
    generate_request,
    insert_request,
    raw_request,
    unloads,
)
from harness.router.api.ollama.response import AnswerStream, Shape, done_answer, embed_answer, whole_answer
from harness.router.errors import RouterError


def completion(**choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "Hi"}
    return {
        "choices": [{"index": 0, "finish_reason": "stop", "message": message} | choice],
        "usage": {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14},
        "timings": {"prompt_n": 1, "prompt_ms": 64.388, "predicted_n": 4, "predicted_ms": 54.701},
    }


def test_chat_streams_unless_told_otherwise() -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    assert chat_request(asked)["stream"] is True
    assert chat_request(asked)["stream_options"] == {"include_usage": True}
    assert chat_request(asked | {"stream": False})["stream"] is False


def test_options_take_their_openai_names() -> None:
    options = {"num_predict": 7, "temperature": 0, "stop": ["x"], "num_ctx": 4096}
    request = chat_request({"model": "m", "messages": [], "options": options})
    assert (request["max_tokens"], request["temperature"], request["stop"]) == (7, 0, ["x"])
    assert "num_ctx" not in request


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("json", {"type": "json_object"}),
        (
            {"type": "object"},
            {"type": "json_schema", "json_schema": {"name": "format", "schema": {"type": "object"}}},
        ),
    ],
)
def test_format_becomes_response_format(wanted: Any, expected: Any) -> None:
    assert chat_request({"model": "m", "messages": [], "format": wanted})["response_format"] == expected


def test_images_and_tool_calls_of_messages_are_converted() -> None:
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    messages = [
        {"role": "user", "content": "see", "images": ["AAAA"]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    seen, called = chat_request({"model": "m", "messages": messages})["messages"]
    assert seen["content"][1]["image_url"]["url"] == "data:image/png;base64,AAAA"
    assert called["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}


def test_answer_has_durations_in_nanoseconds_and_the_servers_counts() -> None:
    answer = whole_answer(Shape.CHAT, completion(), model="m", total_ns=200_000_000, load_ns=5)
    assert answer["message"] == {"role": "assistant", "content": "Hi"}
    assert (answer["done"], answer["done_reason"]) == (True, "stop")
    assert answer["prompt_eval_duration"] == 64_388_000
    assert answer["eval_duration"] == 54_701_000
    assert (answer["prompt_eval_count"], answer["eval_count"]) == (10, 4)
    assert (answer["total_duration"], answer["load_duration"]) == (200_000_000, 5)


def test_cut_answer_says_length() -> None:
    answer = whole_answer(Shape.CHAT, completion(finish_reason="length"), model="m", total_ns=1, load_ns=0)
    assert answer["done_reason"] == "length"


def test_arguments_of_a_called_tool_are_an_object() -> None:
    message = {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}
    answer = whole_answer(Shape.CHAT, completion(message=message), model="m", total_ns=1, load_ns=0)
    assert answer["message"]["tool_calls"] == [{"function": {"name": "f", "arguments": {"x": 1}}}]
    assert answer["message"]["content"] == ""


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": None, "delta": fields}]}


def test_stream_gives_a_line_per_piece_and_the_counts_last() -> None:
    stream = AnswerStream(Shape.CHAT, "m")
    assert stream.event(delta(role="assistant", content=None)) == []
    (line,) = stream.event(delta(content="Hi"))
    assert (line["message"]["content"], line["done"]) == ("Hi", False)
    stream.event({"choices": [{"index": 0, "finish_reason": "length", "delta": {}}]})
    stream.event({**completion(), "choices": []})
    (last,) = stream.end(total_ns=9, load_ns=3)
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", 4)
    assert last["eval_duration"] == 54_701_000


def test_tool_call_that_comes_in_pieces_is_put_together() -> None:
    stream = AnswerStream(Shape.CHAT, "m")
    stream.event(delta(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": '{"x"'}}]))
    stream.event(delta(tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}]))
    stream.event({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    calls, _ = stream.end(total_ns=1, load_ns=0)
    assert calls["message"]["tool_calls"] == [{"function": {"name": "f", "arguments": {"x": 1}}}]


@pytest.mark.parametrize(
    "broken",
    [
        {"messages": "hello"},
        {"messages": ["hello"]},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "user", "content": ["part"]}]},
        {"messages": [{"role": "user", "content": "x", "images": [1]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
        {"messages": [], "tools": "none"},
        {"messages": [], "options": [1]},
        {"messages": [], "format": "xml"},
    ],
)
def test_body_that_is_no_chat_is_the_clients_mistake(broken: dict[str, Any]) -> None:
    with pytest.raises(RouterError) as refused:
        chat_request({"model": "m"} | broken)
    assert (refused.value.status, refused.value.error_class) == (400, "bad_request")


def test_results_of_tools_are_paired_with_their_calls() -> None:
    calls = [{"function": {"name": name, "arguments": {}}} for name in ("a", "b", "a")]
    results = [{"role": "tool", "tool_name": name, "content": name} for name in ("b", "a", "a")]
    messages = [{"role": "assistant", "tool_calls": calls}, *results]
    asked, *answers = chat_request({"model": "m", "messages": messages})["messages"]
    ids = [call["id"] for call in asked["tool_calls"]]
    assert [answer["tool_call_id"] for answer in answers] == [ids[1], ids[0], ids[2]]


def test_ids_that_a_client_gives_are_kept() -> None:
    call = {"id": "mine", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "mine", "content": "1"},
    ]
    asked, answer = chat_request({"model": "m", "messages": messages})["messages"]
    assert asked["tool_calls"][0] == {
        "id": "mine",
        "type": "function",
        "function": {"name": "f", "arguments": '{"x": 1}'},
    }
    assert answer["tool_call_id"] == "mine"


@pytest.mark.parametrize(
    ("think", "expected"),
    [
        (True, {"enable_thinking": True}),
        (False, {"enable_thinking": False}),
        ("high", {"enable_thinking": True, "reasoning_effort": "high"}),
    ],
)
def test_think_reaches_the_template(think: Any, expected: Any) -> None:
    assert chat_request({"model": "m", "messages": [], "think": think})["chat_template_kwargs"] == expected
    assert "chat_template_kwargs" not in chat_request({"model": "m", "messages": []})


@pytest.mark.parametrize("limit", [0, -1, -2])
def test_limit_of_nothing_is_no_limit(limit: int) -> None:
    assert "max_tokens" not in chat_request({"model": "m", "messages": [], "options": {"num_predict": limit}})


def test_unknown_options_keep_their_names_and_cannot_replace_the_request() -> None:
    options = {"dry_multiplier": 0.5, "model": "other", "messages": [1], "stream": False, "seed": None}
    request = chat_request({"model": "m", "messages": [], "options": options})
    assert request["dry_multiplier"] == 0.5
    assert (request["model"], request["messages"], request["stream"]) == ("m", [], True)
    assert "seed" not in request


def test_generate_is_a_chat_of_one_message_after_the_system_prompt() -> None:
    asked = {"model": "m", "prompt": "see", "system": "be short", "images": ["/9j/AA"]}
    system, user = generate_request(asked)["messages"]
    assert system == {"role": "system", "content": "be short"}
    assert user["content"][0] == {"type": "text", "text": "see"}
    assert user["content"][1]["image_url"]["url"] == "data:image/jpeg;base64,/9j/AA"


def test_raw_prompt_is_sent_without_a_template() -> None:
    request = raw_request({"model": "m", "prompt": "<s>x", "raw": True, "system": "ignored", "stream": False})
    assert (request["prompt"], request["stream"]) == ("<s>x", False)
    assert "messages" not in request


def test_suffix_is_an_infill() -> None:
    request = insert_request(
        {"model": "m", "prompt": "def f(", "suffix": "return", "options": {"num_predict": 3}}
    )
    assert (request["input_prefix"], request["input_suffix"]) == ("def f(", "return")
    assert request["n_predict"] == 3


def test_answer_to_an_infill_has_its_counts() -> None:
    native = {
        "content": "x):",
        "stop": True,
        "stop_type": "limit",
        "tokens_evaluated": 5,
        "tokens_predicted": 3,
        "timings": {"prompt_ms": 1.5, "predicted_ms": 2.25},
    }
    answer = whole_answer(Shape.GENERATE, native, model="m", total_ns=9, load_ns=0)
    assert (answer["response"], answer["done_reason"]) == ("x):", "length")
    assert (answer["prompt_eval_count"], answer["eval_count"]) == (5, 3)
    assert (answer["prompt_eval_duration"], answer["eval_duration"]) == (1_500_000, 2_250_000)


@pytest.mark.parametrize(
    ("keep_alive", "expected"),
    [
        *((zero, True) for zero in (0, 0.0, "0", "0s", "0h0m")),
        *((other, False) for other in (None, 5, -1, "5m", "10s", "", False)),
    ],
)
def test_keep_alive_of_zero_unloads(keep_alive: Any, expected: bool) -> None:
    assert unloads({"keep_alive": keep_alive}) is expected


def test_loading_is_answered_in_the_shape_of_the_request() -> None:
    chat = done_answer(Shape.CHAT, "m", "load")
    assert (chat["message"], chat["done"], chat["done_reason"]) == (
        {"role": "assistant", "content": ""},
        True,
        "load",
    )
    assert done_answer(Shape.GENERATE, "m", "unload")["response"] == ""


def test_thinking_stands_apart_from_the_answer() -> None:
    message = {"content": "4", "reasoning_content": "2 and 2"}
    chat = whole_answer(Shape.CHAT, completion(message=message), model="m", total_ns=1, load_ns=0)
    assert (chat["message"]["content"], chat["message"]["thinking"]) == ("4", "2 and 2")
    generated = whole_answer(Shape.GENERATE, completion(message=message), model="m", total_ns=1, load_ns=0)
    assert (generated["response"], generated["thinking"]) == ("4", "2 and 2")


def test_call_that_was_cut_off_is_text_and_no_call() -> None:
    message = {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": '}}]}
    answer = whole_answer(
        Shape.CHAT, completion(message=message, finish_reason="length"), model="m", total_ns=1, load_ns=0
    )
    assert answer["message"] == {"role": "assistant", "content": 'f({"x": )'}


@pytest.mark.parametrize("empty", [{}, {"choices": []}, {"choices": None}, {"choices": ["x"]}])
def test_answer_without_a_choice_is_the_servers_failure(empty: dict[str, Any]) -> None:
    with pytest.raises(RouterError) as failed:
        whole_answer(Shape.CHAT, empty, model="m", total_ns=1, load_ns=0)
    assert failed.value.status == 502


def test_stream_that_stops_without_a_reason_is_the_servers_failure() -> None:
    stream = AnswerStream(Shape.CHAT, "m")
    stream.event(delta(content="Hi"))
    with pytest.raises(RouterError, match="without a reason"):
        stream.end(total_ns=1, load_ns=0)


def test_server_without_timings_gets_no_durations() -> None:
    answer = completion()
    del answer["timings"]
    converted = whole_answer(Shape.CHAT, answer, model="m", total_ns=1, load_ns=0)
    assert converted["eval_count"] == 4
    assert not {"eval_duration", "prompt_eval_duration"} & set(converted)


def test_embeddings_come_in_the_order_of_their_inputs_and_are_cut_to_unit_length() -> None:
    answer = {
        "data": [{"index": 1, "embedding": [0, 1, 0]}, {"index": 0, "embedding": [3, 4, 12]}],
        "usage": {"prompt_tokens": 7},
    }
    made = embed_answer(answer, model="m", dimensions=2, total_ns=5, load_ns=1)
    assert made["embeddings"] == [[0.6, 0.8], [0.0, 1.0]]
    assert (made["prompt_eval_count"], made["total_duration"], made["load_duration"]) == (7, 5, 1)


@pytest.mark.parametrize("answer", [{}, {"data": [{}]}, {"data": [{"index": 0, "embedding": ["x"]}]}])
def test_answer_without_embeddings_is_the_servers_failure(answer: dict[str, Any]) -> None:
    with pytest.raises(RouterError) as failed:
        embed_answer(answer, model="m", dimensions=None, total_ns=1, load_ns=0)
    assert failed.value.status == 502


def test_input_that_is_no_text_is_refused() -> None:
    assert embed_request({"model": "m"}, ["a", "b"])["input"] == ["a", "b"]
    with pytest.raises(RouterError, match="invalid input type"):
        embed_request({"model": "m"}, [1])
