"""Connections that cannot hold up the router: bounded in number, in head and in the time to send one.

uvicorn bounds neither the time that a request's head may take nor, with httptools, its size, and refuses with
plain text. Here each refusal is a JSON error like every other one.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from starlette.types import Scope
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from harness.router.config import RouterConfig
from harness.router.errors import RouterError
from harness.router.proxy.upstream import LEAVING

_PHRASES = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}


@dataclass(frozen=True)
class Limits:
    """What one connection, and all of them, may take."""

    connections: int
    head_bytes: int
    headers: int
    head_timeout_s: float

    def refusal(self, scope: Scope) -> RouterError | None:
        """Why the head of this request is not taken; None if it is."""
        headers = scope["headers"]
        size = sum(len(name) + len(value) + 4 for name, value in headers) + len(scope.get("raw_path") or b"")
        if len(headers) <= self.headers and size <= self.head_bytes:
            return None
        return self.too_large()

    def too_large(self) -> RouterError:
        """The error for a head beyond its bounds."""
        limit = f"{self.headers} headers and {self.head_bytes} bytes"
        return RouterError(431, "head_too_large", f"the head of the request is larger than {limit}")


def limits_of(config: RouterConfig) -> Limits:
    """The limits that a configuration sets."""
    return Limits(
        connections=config.connections_limit,
        head_bytes=config.head_limit_bytes,
        headers=config.headers_limit,
        head_timeout_s=config.head_timeout_s,
    )


def guarded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with these limits around it."""
    return type("Guarded", (GuardedProtocol,), {"limits": limits})


class HeadWithBody:
    """A transport whose answers' heads leave together with the first bytes of their bodies.

    uvicorn writes the two apart; each write is a system call, a tenth of all that a relayed request costs.
    A head that no body follows at once leaves in the loop's next round.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, or hold what begins like a head. A body that begins so is held as briefly."""
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        """Close once everything has been written."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)


class GuardedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """One connection; its head is being read until uvicorn has made a request of it (``cycle``)."""

    limits: Limits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._leaving: list[Callable[[], None]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or refuse it if there are too many."""
        super().connection_made(HeadWithBody(cast("asyncio.Transport", transport), self.loop))
        if len(self.connections) > self.limits.connections:
            message = f"more than {self.limits.connections} connections are open"
            self.refuse(RouterError(503, "too_many_connections", message, retry_after_s=1))
        else:
            self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it; who works for the request that it had is told."""
        self._end_head()
        if self.cycle and not self.cycle.response_complete:
            for leave in self._leaving:
                leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; a head that does not end is refused."""
        if self.transport.is_closing():
            return
        before = self.cycle
        in_head = before is None or before.response_complete
        super().data_received(data)
        if not in_head:
            return
        if self.cycle is not before:
            self._end_head()
            self._leaving = self.cycle.scope["state"][LEAVING] = []
            return
        self._begin_head()
        self._head_bytes += len(data)
        if self._head_bytes > self.limits.head_bytes:
            self.refuse(self.limits.too_large())

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP is refused like everything else."""
        self.refuse(RouterError(400, "bad_request", msg))

    def _begin_head(self) -> None:
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.limits.head_timeout_s, self._too_slow)

    def _end_head(self) -> None:
        self._head_bytes = 0
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        message = f"the head of the request took longer than {self.limits.head_timeout_s:g} s"
        self.refuse(RouterError(408, "head_timeout", message))

    def refuse(self, error: RouterError) -> None:
        """Answer with an error and close."""
        if self.transport.is_closing():
            return
        body = json.dumps(error.body()).encode()
        more = b"".join(f"{name}: {value}\r\n".encode() for name, value in error.headers.items())
        head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\n" % (
            error.status,
            _PHRASES[error.status],
        )
        head += b"content-length: %d\r\nconnection: close\r\n%s\r\n" % (len(body), more)
        self.transport.write(head + body)
        self.transport.close()
