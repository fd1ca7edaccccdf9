"""Client connections: how many, how long without a request, how fast heads arrive and answers are read.

uvicorn bounds neither the time that a request's head may take nor, with httptools, its size, waits for ever
for a client that does not read, and refuses with plain text. Here each refusal is a JSON error like every
other one.
"""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from harness.router.config import RouterConfig
from harness.router.errors import RouterError
from harness.router.http.metrics import Metrics
from harness.router.json_log import log

_KERNEL_BYTES = 128 * 1024
"""Bytes of an answer that the kernel buffers for a client; its default is more than 2 MiB."""
_UNSENT_BYTES = 128 * 1024
"""A client is behind while more than this is unsent; nothing more is sent to it meanwhile."""
_DRAINED_BYTES = 64 * 1024
"""A client has to take at least this much within ``send_timeout_s`` while more waits for it."""


def check_head(scope: Scope, config: RouterConfig) -> None:
    """Check a complete head; ``LimitedProtocol`` checks one that does not end.

    Raises:
        RouterError: it has too many headers or bytes (431).
    """
    headers = scope["headers"]
    size_bytes = len(scope.get("raw_path") or b"")
    size_bytes += sum(len(name) + len(value) + 4 for name, value in headers)
    if len(headers) > config.headers_limit or size_bytes > config.head_limit_bytes:
        raise _head_too_large(config)


def limited_protocol(config: RouterConfig, metrics: Metrics) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with the limits of ``config``, for one router."""
    members = {"router_config": config, "metrics": metrics, "open_connections": Connections(config, metrics)}
    return type("ConfiguredProtocol", (LimitedProtocol,), members)


class Connections:
    """The open connections of a router by address, and those among them that serve no request."""

    def __init__(self, config: RouterConfig, metrics: Metrics) -> None:
        self._limit = config.connections_limit
        self._address_limit = config.connections_per_address or max(1, config.connections_limit // 2)
        self._metrics = metrics
        self._open: Counter[str] = Counter()
        self._idle: dict[LimitedProtocol, None] = {}
        """In the order of their last answers, or of their starts."""
        metrics.count_connections(self._open.total)

    def add(self, connection: "LimitedProtocol") -> RouterError | None:
        """Count a new connection; the error where there is no room for it.

        An idle connection is closed to make room, the oldest first.
        """
        address = connection.address
        self._open[address] += 1
        if self._open[address] > self._address_limit:
            if not self._close_idle(address):
                message = f"one address may have at most {self._address_limit} open connections"
                return RouterError(503, "too_many_connections_of_address", message, retry_after_s=1)
        elif self._open.total() > self._limit and not self._close_idle():
            message = f"more than {self._limit} connections are open"
            return RouterError(503, "too_many_connections", message, retry_after_s=1)
        self._idle[connection] = None
        return None

    def remove(self, connection: "LimitedProtocol") -> None:
        self.mark_busy(connection)
        self._open[connection.address] -= 1
        if not self._open[connection.address]:
            del self._open[connection.address]

    def mark_busy(self, connection: "LimitedProtocol") -> None:
        """It serves a request."""
        self._idle.pop(connection, None)

    def mark_idle(self, connection: "LimitedProtocol") -> None:
        """It waits for a request: it may be closed for another connection."""
        self._idle.pop(connection, None)
        self._idle[connection] = None

    def _close_idle(self, address: str | None = None) -> bool:
        for connection in self._idle:
            if address in (None, connection.address):
                del self._idle[connection]
                connection.transport.abort() if connection.unsent_bytes else connection.transport.close()
                self._metrics.limit_reached("idle_connection_closed")
                return True
        return False


class LimitedProtocol(HttpToolsProtocol):
    """One connection.

    Its requests are served one after the other. Those that are sent behind one that is served are kept, up
    to the size of a head; reading never stops meanwhile, so that the client's leaving is noticed.
    """

    router_config: RouterConfig
    metrics: Metrics
    open_connections: Connections

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.address = ""
        self._served: RequestResponseCycle | None = None
        """The request that is being answered, or was last."""
        self._client_left: Callable[[], None] | None = None
        self._heads = 0
        self._head_begun = False
        self._in_message = False
        """Between the end of a request's head and the end of its body."""
        self._head_bytes = 0
        self._ahead_bytes = 0
        """Sent behind the request that is served."""
        self._ignores_input = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    @property
    def unsent_bytes(self) -> int:
        """Of answers that the client has not taken."""
        return self.transport.get_write_buffer_size()

    @property
    def is_behind(self) -> bool:
        """Whether the client takes its answer more slowly than it is sent."""
        return self.flow.write_paused

    @property
    def body_incomplete(self) -> bool:
        """Whether more of the body of the request that is served is to come."""
        return self._served is not None and self._served.more_body

    def on_client_left(self, callback: Callable[[], None] | None) -> None:
        """Have ``callback`` called when the client disconnects before it has its whole answer."""
        self._client_left = callback
        if callback and self._served and self._served.disconnected:
            callback()

    def mark_idle(self) -> None:
        """The request has its answer; the rest of its body is not needed."""
        self.open_connections.mark_idle(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or refuse it if there are too many."""
        super().connection_made(transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES)
        transport.set_write_buffer_limits(high=_UNSENT_BYTES, low=_DRAINED_BYTES)
        self.address = self.client[0] if self.client else ""
        if error := self.open_connections.add(self):
            self._refuse(error)
        else:
            self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head_timer()
        self._end_send_timer()
        self.open_connections.remove(self)
        if served := self._serving:
            # uvicorn notifies only the last request.
            served.disconnected = True
            served.message_event.set()
            if self._client_left:
                self._client_left()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse on; refuse a head that is too large before it ends."""
        if self._ignores_input or self.transport.is_closing():
            return
        heads, in_head = self._heads, not self._in_message
        ahead = self._serving and not self.body_incomplete
        super().data_received(data)
        if self._serving:
            if self.pipeline:
                self.flow.resume_reading()
            self._ahead_bytes += len(data) if ahead else 0
            if self._ahead_bytes > self.router_config.head_limit_bytes:
                self._ignore_input()
        elif in_head and self._heads == heads:
            self._head_bytes += len(data)
            self._start_head_timer()
            if self._head_bytes > self.router_config.head_limit_bytes:
                self._refuse(_head_too_large(self.router_config))
        elif self._head_begun:
            self._start_head_timer()

    def on_message_begin(self) -> None:
        self._head_begun = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._heads += 1
        self._head_begun, self._in_message, self._head_bytes = False, True, 0
        self._end_head_timer()
        super().on_headers_complete()
        self.cycle.scope["state"]["connection"] = self
        self.open_connections.mark_busy(self)

    def on_message_complete(self) -> None:
        self._in_message = False
        super().on_message_complete()
        self.flow.resume_reading()  # a large body has paused it

    def on_response_complete(self) -> None:
        """Serve the next request, or wait for it."""
        super().on_response_complete()
        if self.unsent_bytes:
            self._start_send_timer()
        if not self._serving and not self.transport.is_closing():
            self._ahead_bytes = 0
            self.open_connections.mark_idle(self)
            if self._head_begun:
                self._start_head_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_send_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_send_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(RouterError(400, "bad_request", msg))

    def _unsupported_upgrade_warning(self) -> None:
        """Take no upgrade: the request gets its answer in HTTP/1.1, and no further one is read."""
        self._ignore_input()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._served = cycle
        if not self.flow.write_paused:
            self._end_send_timer()
        super()._start_asgi_task(cycle, app)

    @property
    def _serving(self) -> RequestResponseCycle | None:
        """The request that has not had its whole answer."""
        return self._served if self._served and not self._served.response_complete else None

    def _wait_for_request(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _ignore_input(self) -> None:
        """Serve the complete requests, then close; discard further input."""
        self._ignores_input = True
        while self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()
        last = self.pipeline[0][0] if self.pipeline else self._served
        if last is not None:
            last.keep_alive = False
        self.flow.resume_reading()

    def _start_head_timer(self) -> None:
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.router_config.head_timeout_s, self._head_timed_out)

    def _end_head_timer(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if self._head_begun:
            message = f"the head of the request took longer than {self.router_config.head_timeout_s:g} s"
            self._refuse(RouterError(408, "head_timeout", message))
        else:
            self.transport.close()

    def _start_send_timer(self) -> None:
        if self._send_timer is None:
            timeout_s = self.router_config.send_timeout_s
            self._send_timer = self.loop.call_later(timeout_s, self._check_sent, self.unsent_bytes)

    def _end_send_timer(self) -> None:
        if self._send_timer:
            self._send_timer.cancel()
            self._send_timer = None

    def _check_sent(self, before_bytes: int) -> None:
        self._send_timer = None
        unsent_bytes = self.unsent_bytes
        if not unsent_bytes:
            return
        if unsent_bytes <= before_bytes - _DRAINED_BYTES:
            self._start_send_timer()
            return
        self.metrics.limit_reached("send_timeout")
        log("send_timed_out", client=self.address, unsent_bytes=unsent_bytes)
        self.transport.abort()

    def _refuse(self, error: RouterError) -> None:
        if self.transport.is_closing():
            return
        if self._serving:
            self._ignore_input()  # nothing may be written into the answer that is being sent
            return
        self.metrics.refused(error)
        body = json.dumps(error.body()).encode()
        headers = error.headers | {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(head.encode() + b"\r\n" + body)
        self.transport.close()


def _head_too_large(config: RouterConfig) -> RouterError:
    limit = f"{config.headers_limit} headers and {config.head_limit_bytes} bytes"
    return RouterError(431, "head_too_large", f"the head of the request is larger than {limit}")
