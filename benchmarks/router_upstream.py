"""An upstream that answers at once, so that a benchmark measures only the proxy in front of it.

    benchmarks/router_upstream.py PORT

It implements a minimal chat completion: a JSON answer, or a stream of ``max_tokens`` events, the first at
once and the others ``seed`` milliseconds apart. Each event's text is ``t=<CLOCK_MONOTONIC ns>``, its send
time. A proxy passes it through, so a reader on the same machine can compute the delay.
"""

import asyncio
import json
import re
import sys
import time

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream": ?true')
_COUNT = re.compile(rb'"max_tokens": ?(\d+)')
_GAP_MS = re.compile(rb'"seed": ?(\d+)')
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)

_HEAD = {"id": "chatcmpl-1", "created": 1, "model": "m"}
_USAGE = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
_CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello."}}
_BODY = json.dumps(_HEAD | {"object": "chat.completion", "choices": [_CHOICE], "usage": _USAGE}).encode()
_ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_BODY)
) + _BODY
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT_HEAD = json.dumps(_HEAD | {"object": "chat.completion.chunk"})[:-1].encode()
_EVENT = (
    b"data: "
    + _EVENT_HEAD
    + b', "choices": [{"index": 0, "delta": {"content": "t=%d"}, "finish_reason": null}]}\n\n'
)
_LAST = (
    b"data: " + _EVENT_HEAD + b', "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
    b"data: [DONE]\n\n"
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Instant(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._read = b""
        self._close = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or len(body) < (int(length[1]) if length else 0):
            return
        self._read = b""
        self._close = _CLOSE.search(head) is not None
        if _STREAM.search(body):
            count, gap = _COUNT.search(body), _GAP_MS.search(body)
            self._transport.write(_STREAM_HEAD)
            self._next(int(count[1]) if count else 1, int(gap[1]) / 1000 if gap else 0.02)
        else:
            self._end(_ANSWER)

    def _next(self, left: int, gap_s: float) -> None:
        self._transport.write(_chunk(_EVENT % time.monotonic_ns()))
        if left > 1:
            self._timer = asyncio.get_running_loop().call_later(gap_s, self._next, left - 1, gap_s)
        else:
            self._end(_chunk(_LAST) + b"0\r\n\r\n")

    def _end(self, data: bytes) -> None:
        self._transport.write(data)
        if self._close:
            self._transport.close()


async def serve(port: int) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
