"""A stream that the network cuts anywhere, or whose client reads slowly."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import chain

import pytest
from harness.router.errors import RouterError
from harness.router.http.metrics import Metrics
from harness.router.proxy.stream import Events, RelayedStream, whole_lines
from starlette.types import Receive, Scope, Send
from tests.unit.router.serving import KEY, Connection, serve_app

GET = b"GET /v1/stream HTTP/1.1\r\nhost: x\r\nauthorization: Bearer " + KEY.encode() + b"\r\n\r\n"
LINES = 40
LINE_BYTES = 200_000


class Streaming:
    """A server that has so much to say at once, and is free after that."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.metrics = Metrics()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        resources = AsyncExitStack()
        resources.callback(self.free.set)
        stream = RelayedStream(self._lines(), 200, {}, "text/event-stream", resources=resources)
        await stream(scope, receive, send)

    async def _lines(self) -> AsyncIterator[bytes]:
        for number in range(LINES):
            yield b"%d" % number * (LINE_BYTES // len(b"%d" % number))
            await asyncio.sleep(0)

    def held_bytes(self) -> float | None:
        return self.metrics.registry.get_sample_value("llama_router_body_bytes")


def text(answer: bytes) -> bytes:
    """The body of a chunked response."""
    _, _, rest = answer.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


@pytest.mark.parametrize(
    ("budget_bytes", "frees"), [(1 << 30, True), (1 << 20, False)], ids=["kept", "budget spent"]
)
async def test_server_of_a_client_that_does_not_read_is_free_and_nothing_is_lost(
    budget_bytes: int, frees: bool
) -> None:
    app, get = Streaming(), GET.replace(b"host: x", b"host: x\r\nconnection: close")
    settings = {"body_limit_bytes": 1000, "bodies_limit_bytes": budget_bytes}
    async with serve_app(app, app.metrics, **settings) as port:
        async with Connection.to(port, window=2048) as client:
            client.send(get)
            if frees:
                async with asyncio.timeout(10):
                    await app.free.wait()
            whole = text(await client.rest())
        assert app.free.is_set()
        assert whole == b"".join([line async for line in app._lines()])
        assert app.held_bytes() == 0


def test_events_end_at_an_empty_line_in_either_style() -> None:
    events = Events()
    assert events.feed(b': ping\n\ndata: {"a"') == []
    assert events.feed(b": 1}\r\n\r\nevent: x\ndata:2\ndata: 3\n\ndata: last") == [b'{"a": 1}', b"2\n3"]
    assert events.end() == [b"last"]


@pytest.mark.parametrize("part", [b"x" * 65536, b"data: " + b"x" * 65536 + b"\n"], ids=["line", "lines"])
def test_event_without_end_is_not_kept(part: bytes) -> None:
    events = Events()
    parts = chain.from_iterable(map(events.feed, [part] * 300))
    with pytest.raises(RouterError, match="an event of more than 16777216 bytes") as failed:
        next(parts)
    assert failed.value.status == 502


def test_many_short_events_are_no_long_one() -> None:
    events = Events()
    event = b"data: " + b"x" * 65536 + b"\n\n"
    assert sum(len(events.feed(event)) for _ in range(300)) == 300


async def test_line_that_never_ends_is_not_begun() -> None:
    async def broken() -> AsyncIterator[bytes]:
        for piece in (b"data: 1\n", b"\ndata: ", b"2\n\nda", b"ta: 3"):
            yield piece
        raise RouterError(502, "unknown", "gone")

    pieces = whole_lines(broken())
    seen = [await anext(pieces) for _ in range(3)]
    with pytest.raises(RouterError):
        await anext(pieces)
    assert seen == [b"data: 1\n", b"\n", b"data: 2\n\n"]
