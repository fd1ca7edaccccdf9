"""Whatever a pool server answers, a client gets an answer, a clear 502, or a stream that ends in an error."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from harness.router.api.ollama.response import AnswerStream, Shape, embed_answer, whole_answer
from harness.router.errors import RouterError
from harness.router.http.json_body import dump, parse_answer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.router.serving import KEY, serve

CALL = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
LOGPROBS = {"content": [{"token": "a", "logprob": -1.5, "bytes": [97], "top_logprobs": [{"token": "b"}]}]}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4}
TIMINGS = {"prompt_n": 3, "cache_n": 1, "predicted_n": 4, "prompt_ms": 1.5, "predicted_ms": 2}
MESSAGE = {"content": "hi", "reasoning_content": "hm", "tool_calls": [CALL]}
COMPLETION = {
    "choices": [{"message": MESSAGE, "finish_reason": "stop", "logprobs": LOGPROBS}],
    "usage": USAGE,
    "timings": TIMINGS,
}
EVENT = {"choices": [{"delta": MESSAGE, "finish_reason": "stop", "logprobs": LOGPROBS}], "usage": USAGE}
INFILL = {"content": "a", "stop": True, "stop_type": "limit", "tokens_evaluated": 1, "timings": TIMINGS}
EMBEDDINGS = {"data": [{"index": 0, "embedding": [0.1, 1]}], "usage": USAGE}

ODD = st.sampled_from(
    [float("nan"), float("inf"), -1, 1 << 80, "\ud800", "{", [[[[]]]], '{"a": 1e999}', "{" * 9]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def spoiled(draw: st.DrawFn, answer: dict[str, Any]) -> dict[str, Any]:
    """A valid answer with some of its parts replaced by anything."""
    spoilt = json.loads(json.dumps(answer))
    for _ in range(draw(st.integers(1, 3))):
        at: Any = spoilt
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and at[key] and draw(st.booleans()):
                at = at[key]
                continue
            at[key] = deepcopy(draw(VALUES))  # a sampled list is the strategy's own
            break
    return dict(spoilt)


def sendable(answer: Any) -> None:
    json.loads(dump(answer), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@settings(max_examples=400, deadline=None)
@given(st.one_of(spoiled(COMPLETION), spoiled(INFILL)), st.sampled_from(Shape))
def test_whole_completion_is_converted_or_refused(answer: dict[str, Any], shape: Shape) -> None:
    with suppress(RouterError):
        sendable(whole_answer(shape, answer, model="m", total_ns=1, load_ns=1))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(spoiled(EVENT), spoiled(INFILL), st.just(EVENT)), max_size=4))
def test_streamed_completion_is_converted_or_refused(events: list[dict[str, Any]]) -> None:
    stream = AnswerStream(Shape.CHAT, "m")
    with suppress(RouterError):
        for event in events:
            sendable(stream.event(event))
        sendable(stream.end(total_ns=1, load_ns=1))


@settings(max_examples=200, deadline=None)
@given(spoiled(EMBEDDINGS))
def test_embeddings_are_converted_or_refused(answer: dict[str, Any]) -> None:
    with suppress(RouterError):
        sendable(embed_answer(answer, model="m", dimensions=1, total_ns=1, load_ns=1))


def test_calls_of_one_answer_are_bounded() -> None:
    stream = AnswerStream(Shape.CHAT, "m")
    call = {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "x" * 100_000}}]}}]}
    for _ in range(41):
        stream.event(call)
    with pytest.raises(RouterError, match="too long"):
        stream.event(call)


DEEP = b'{"choices": [{"message": {"content": "a"}, "logprobs": ' + b"[" * 5000 + b"]" * 5000 + b"}]}"
DEEP_CALL = json.dumps(
    {
        "choices": [
            {
                "message": {
                    "tool_calls": [{"function": {"name": "f", "arguments": '{"a":' * 900 + "1" + "}" * 900}}]
                },
                "finish_reason": "stop",
            }
        ]
    }
).encode()


def ok(body: bytes, kind: bytes = b"application/json", status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    return head % (status, kind, len(body)) + body


SSE = b"text/event-stream"
ANSWERS = {
    "nothing": b"",
    "no HTTP": b"hello\r\n\r\n",
    "cut head": b"HTTP/1.1 200 OK\r\ncontent-",
    "cut body": b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{",
    "no JSON": ok(b"<html>"),
    "no object": ok(b"[1]"),
    "empty": ok(b""),
    "no UTF-8": ok(b'{"choices": "\xff"}'),
    "NaN": ok(
        b'{"choices": [{"message": {"content": "a"}}], "timings": {"prompt_ms": NaN, "prompt_n": 1e999}}'
    ),
    "deep": ok(DEEP),
    "deep call": ok(DEEP_CALL),
    "wrong types": ok(b'{"choices": [{"message": {"content": {"a": 1}, "tool_calls": 5}}]}'),
    "204": b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\nconnection: close\r\n\r\n",
    "299": ok(b"{}", status=b"299 Odd"),
    "599": ok(b"<html>", status=b"599 Odd"),
    "999": ok(b"{}", status=b"999 Odd"),
    "error of another type": ok(b'{"error": [[1]]}', status=b"500 No"),
    "error that is deep": ok(b'{"error": ' + b"[" * 900 + b"]" * 900 + b"}", status=b"500 No"),
    "redirect": b"HTTP/1.1 307 Go\r\nlocation: http://127.0.0.1:1/private\r\nconnection: close\r\n\r\n",
    "stream of garbage": ok(b"data: {\n\ndata: 5\n\n", SSE),
    "stream of wrong types": ok(b'data: {"choices": [{"delta": 5}]}\n\n', SSE),
    "stream that breaks": ok(b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n', SSE),
    "stream of an error": ok(b'data: {"error": {"message": {"a": 1}}}\n\n', SSE),
    "stream with odd numbers": ok(
        b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}], "timings": {"prompt_ms": 1e999}}\n\n',
        SSE,
    ),
    "stream with deep calls": ok(b"data: " + DEEP_CALL + b"\n\n", SSE),
}


@asynccontextmanager
async def answering(raw: bytes, asked: list[bytes] | None = None) -> AsyncIterator[int]:
    """A server that answers every request with the same bytes, and adds their heads to ``asked``."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if asked is not None:
            asked.append(head)
        length = next((int(h[15:]) for h in head.split(b"\r\n") if h.startswith(b"content-length:")), 0)
        await reader.readexactly(length)
        writer.write(raw)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield int(server.sockets[0].getsockname()[1])


async def test_hostile_answer_ends_in_an_answer_or_a_clear_error(tmp_path: Path) -> None:
    """One router in front of a server for each answer, which alone has the model of its name."""
    async with AsyncExitStack() as stack:
        ports = {name: await stack.enter_async_context(answering(raw)) for name, raw in ANSWERS.items()}
        pool = [
            {"node": f"n{port}", "url": f"http://127.0.0.1:{port}", "models": [name], "keep_alive": False}
            for name, port in ports.items()
        ]
        router = await stack.enter_async_context(serve(tmp_path, pool=pool))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        for name, hostile in ports.items():
            chat = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
            asked = [
                ("/api/chat", chat | {"stream": False}),
                ("/api/chat", chat),
                ("/api/generate", {"model": name, "prompt": "a", "stream": False}),
                ("/api/embed", {"model": name, "input": "a"}),
                ("/v1/chat/completions", chat),
            ]
            for path, body in asked:
                url, headers = f"http://127.0.0.1:{router}{path}", {"authorization": f"Bearer {KEY}"}
                async with session.post(url, json=body, headers=headers) as response:
                    text = await response.text(errors="replace")
                case = (name, path, text)
                assert response.status in (200, 400, 500, 502, 599), case
                assert text != "Internal Server Error", case
                assert "private" not in text, case
                assert f"127.0.0.1:{hostile}" not in text, case
                if path.startswith("/api/") and "embed" not in path:
                    last = json.loads(text.splitlines()[-1], parse_constant=pytest.fail)
                    assert last.get("done") or isinstance(last["error"], str), case


async def post(port: int, path: str, body: object) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session:
        headers = {"authorization": f"Bearer {KEY}"}
        async with session.post(f"http://127.0.0.1:{port}{path}", json=body, headers=headers) as response:
            return response.status, json.loads(await response.text())


@pytest.mark.parametrize("status", [b"301", b"302", b"303", b"307", b"308"])
async def test_redirect_is_not_followed(tmp_path: Path, status: bytes) -> None:
    asked: list[bytes] = []
    async with answering(ok(b'{"models": [], "data": [], "secret": 1}'), asked) as private:
        there = b"http://127.0.0.1:%d/private" % private
        away = b"HTTP/1.1 %b Go\r\nlocation: %b\r\nconnection: close\r\n\r\n" % (status, there)
        async with answering(away) as hostile:
            servers = [
                {"node": kind, "url": f"http://127.0.0.1:{hostile}", "kind": kind, "models": [kind]}
                for kind in ("openai", "ollama")
            ]
            async with serve(tmp_path, pool=servers) as port:
                for kind in ("openai", "ollama"):
                    for path in ("/api/chat", "/v1/chat/completions", "/api/show"):
                        body = {"model": kind, "messages": [{"role": "user", "content": "hi"}]}
                        await post(port, path, body)
    assert asked == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/api/chat", b"application/json"), ("/api/chat", SSE), ("/v1/chat/completions", b"application/json")],
)
async def test_answer_without_end_is_given_up_at_the_limit(tmp_path: Path, path: str, kind: bytes) -> None:
    body = b'{"choices": [{"message": {"content": "' + b"x" * (2 << 20) + b'"}}]}'
    async with answering(ok(body, kind)) as hostile:
        pool = [{"node": "n", "url": f"http://127.0.0.1:{hostile}", "models": ["m"]}]
        async with serve(tmp_path, pool=pool, answer_limit_bytes=1 << 20) as port:
            chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": False}
            status, answer = await post(port, path, chat)
    error = answer["details"] if path == "/api/chat" else answer["error"]
    assert (status, error["class"]) == (502, "answer_too_long")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_answer_of_any_bytes_is_an_object_or_a_502(body: bytes) -> None:
    with suppress(RouterError):
        assert isinstance(parse_answer(body), dict)
