"""A streamed answer as the client times it: what a token is, and how an answer that fails is named."""

import json
from typing import Any

import pytest
from harness.contracts.run_records import Request
from harness.llama import count_tokens, token_texts
from harness.router_client.chat_stream import ChatRequest, error_text
from tests.unit.router_client.router_server import answering

USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


def event(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


def called(arguments: str) -> dict[str, Any]:
    return event(tool_calls=[{"index": 0, "id": "1", "function": {"name": "f", "arguments": arguments}}])


async def chat(*events: dict[str, Any], status: int = 200, end: str = "data: [DONE]\n\n") -> Request:
    """The request as the client sees it, answered with these events."""
    body = "".join(f"data: {json.dumps(one)}\n\n" for one in events) + end
    async with answering(status, body, "text/event-stream") as client:
        return await client.chat(ChatRequest("m", "Why?", 3, 5.0))


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([event(content="a"), event(content="b"), event(content="c")], "abc"),
        ([event(reasoning_content="a"), event(reasoning_content="b"), event(content="c")], "abc"),
        ([event(reasoning_content="a"), event(reasoning_content="b"), event(reasoning_content="c")], "abc"),
        ([called('{"x"'), called(":"), called("1}")], '{"x":1}'),
    ],
    ids=["content", "thinking first", "thinking only", "a tool call"],
)
async def test_tokens_of_a_reasoning_model_and_of_a_tool_call_are_tokens(
    events: list[dict[str, Any]], text: str
) -> None:
    seen = await chat(event(role="assistant", content=None), *events, event(content=""), USAGE)
    assert seen.error is None
    assert len(seen.token_ns) == seen.completion_tokens == 3
    assert seen.text == text


@pytest.mark.parametrize(
    "sent",
    [
        event(role="assistant", content=None),
        event(content=""),
        event(content='"'),
        event(content='say "content": "x"'),
        event(reasoning_content="a"),
        event(reasoning_content="a", content="b"),
        called(""),
        called("{"),
        event(thinking="a"),
        USAGE,
        {"choices": [{"text": "a"}]},
    ],
)
def test_router_and_client_count_the_same_tokens(sent: dict[str, Any]) -> None:
    pieces = list(token_texts(sent))
    for separators in ((",", ":"), (", ", ": ")):
        assert count_tokens(json.dumps(sent, separators=separators).encode()) == len(pieces)


async def test_probabilities_are_no_tokens_of_their_own() -> None:
    choice = {
        "delta": {"content": "a"},
        "logprobs": {"content": [{"id": 5, "token": "a", "logprob": -0.5, "top_logprobs": []}]},
    }
    seen = await chat({"choices": [choice]}, USAGE)
    assert (len(seen.token_ns), seen.token_ids, seen.logprobs) == (1, [5], [-0.5])


@pytest.mark.parametrize(
    ("events", "end", "message"),
    [
        ([event(content="a")], "", "the stream ended after 1 tokens without usage figures"),
        ([event(content="a")], "data: {\n\n", "the stream cannot be read after 1 tokens"),
        (
            [event(content="a"), {"error": {"message": "m", "class": "backend_lost"}}],
            "",
            "backend_lost: m",
        ),
    ],
)
async def test_answer_that_breaks_off_says_after_how_many_tokens(
    events: list[dict[str, Any]], end: str, message: str
) -> None:
    seen = await chat(*events, end=end)
    assert seen.error is not None
    assert message in seen.error


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": "no\\nroom", "class": "does_not_fit"}}', "does_not_fit: no room"),
        ('{"error": "gone"}', "gone"),
        ("<h1>502</h1>\n", "<h1>502</h1>"),
    ],
)
def test_error_body_becomes_one_line(body: str, message: str) -> None:
    assert error_text(body) == message
