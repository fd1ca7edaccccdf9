"""A stream that the network cuts anywhere: its server-sent events and its lines."""

from collections.abc import AsyncIterator

import pytest
from harness.router.errors import RouterError
from harness.router.proxy.stream import Events, whole_lines


def test_events_end_at_an_empty_line_in_either_style() -> None:
    events = Events()
    assert events.feed(b': ping\n\ndata: {"a"') == []
    assert events.feed(b": 1}\r\n\r\nevent: x\ndata:2\ndata: 3\n\ndata: last") == [b'{"a": 1}', b"2\n3"]
    assert events.end() == [b"last"]


def test_event_without_end_is_not_kept() -> None:
    events = Events()
    for _ in range(16):
        events.feed(b"x" * 1024 * 1024)
    with pytest.raises(RouterError) as failed:
        events.feed(b"x")
    assert failed.value.status == 502


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
