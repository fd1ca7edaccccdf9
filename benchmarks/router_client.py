"""A cheap load generator: raw sockets, fixed requests, answers parsed as bytes."""

import asyncio
import json
import re
import time
from dataclasses import dataclass, field

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_SENT = re.compile(rb"t=(\d+)")
_LAST_CHUNK = b"0\r\n\r\n"


@dataclass
class Seen:
    """Results of the requests; times in nanoseconds."""

    whole: list[int] = field(default_factory=list)
    """From request sent to the last byte, for each answer."""
    first: list[int] = field(default_factory=list)
    """From request sent to the first event, for each stream."""
    delays: list[int] = field(default_factory=list)
    """From sent by the upstream to received here, for each later event."""
    ended_streams: int = 0
    failures: list[str] = field(default_factory=list)


def request(port: int, key: str, *, events: int = 0, gap_ms: int = 0) -> bytes:
    """Bytes of one chat completion request; with ``events``, of a stream with this number of events."""
    body: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "Hi."}]}
    if events:
        body |= {"stream": True, "max_tokens": events, "seed": gap_ms}
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


class Asking(asyncio.Protocol):
    """One keep-alive connection that sends the next request after each answer, until ``stop`` is set."""

    def __init__(self, data: bytes, seen: Seen) -> None:
        self._data = data
        self._seen = seen
        self._read = b""
        self._sent_ns = 0
        self._events = 0
        self.stop = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._seen.failures.append(f"connection lost: {error!r}: {self._read[:200]!r}")
            self.done.set_result(None)

    def _ask(self) -> None:
        self._read, self._events = b"", 0
        self._sent_ns = time.monotonic_ns()
        self._transport.write(self._data)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        for sent in _SENT.findall(data):
            self._events += 1
            if self._events == 1:
                self._seen.first.append(now - self._sent_ns)
            else:
                self._seen.delays.append(now - int(sent))
        self._read = (self._read + data) if not self._events else (self._read[-16:] + data)[-16:]
        if not self._ended():
            return
        if self._events:
            self._seen.ended_streams += 1
        self._seen.whole.append(now - self._sent_ns)
        if self.stop and not self.done.done():
            self.done.set_result(None)
            self._transport.close()
        else:
            self._ask()

    def _ended(self) -> bool:
        if self._events:
            return self._read.endswith(_LAST_CHUNK)
        head, found, body = self._read.partition(b"\r\n\r\n")
        if found and not head.startswith(b"HTTP/1.1 200"):
            self._seen.failures.append(self._read[:200].decode("latin-1"))
            self.done.set_result(None)
            self._transport.close()
            return False
        length = _LENGTH.search(head)
        if not length:
            return bool(found) and self._read.endswith(_LAST_CHUNK)
        return len(body) >= int(length[1])


async def _ask(port: int, data: bytes, connections: int, seconds: float, spread_s: float) -> Seen:
    loop, seen = asyncio.get_running_loop(), Seen()
    askers = []
    for _ in range(connections):
        _, asker = await loop.create_connection(lambda: Asking(data, seen), "127.0.0.1", port)
        askers.append(asker)
        if spread_s:
            await asyncio.sleep(spread_s / connections)
    await asyncio.sleep(seconds)
    for asker in askers:
        asker.stop = True
    await asyncio.wait_for(asyncio.gather(*(asker.done for asker in askers)), 120)
    return seen


def ask(port: int, data: bytes, *, connections: int, seconds: float, spread_s: float = 0) -> Seen:
    """Send requests on ``connections`` connections for ``seconds``; then read the answers in flight.

    Args:
        seconds: with 0 each connection sends one request.
        spread_s: the connections start one after the other during this time. Streams of equal length that
            start at the same moment would stay synchronous and delay each other.
    """
    return asyncio.run(_ask(port, data, connections, seconds, spread_s))
