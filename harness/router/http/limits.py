"""Limits of client connections: their number, the size of a request's head, the time to send it.

uvicorn bounds neither the time that a request's head may take nor, with httptools, its size, and refuses with
plain text. Here each refusal is a JSON error like every other one.
"""

import asyncio
import json
from http import HTTPStatus
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from harness.router.config import RouterConfig
from harness.router.errors import RouterError


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


def limited_protocol(config: RouterConfig) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with the limits of ``config``."""
    return type("ConfiguredProtocol", (LimitedProtocol,), {"router_config": config})


class LimitedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """One connection; its head is being read until uvicorn has made a request of it (``cycle``)."""

    router_config: RouterConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the connection, or refuse it if there are too many."""
        super().connection_made(transport)
        limit = self.router_config.connections_limit
        if len(self.connections) > limit:
            message = f"more than {limit} connections are open"
            self._refuse(RouterError(503, "too_many_connections", message, retry_after_s=1))
        else:
            self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_complete()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse on; refuse a head that is too large before it ends."""
        if self.transport.is_closing():
            return
        before = self.cycle
        in_head = before is None or before.response_complete
        super().data_received(data)
        if not in_head:
            return
        if self.cycle is not before:
            self._head_complete()
            return
        self._start_head_timer()
        self._head_bytes += len(data)
        if self._head_bytes > self.router_config.head_limit_bytes:
            self._refuse(_head_too_large(self.router_config))

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is not HTTP."""
        self._refuse(RouterError(400, "bad_request", msg))

    def _start_head_timer(self) -> None:
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.router_config.head_timeout_s, self._head_timed_out)

    def _head_complete(self) -> None:
        self._head_bytes = 0
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        message = f"the head of the request took longer than {self.router_config.head_timeout_s:g} s"
        self._refuse(RouterError(408, "head_timeout", message))

    def _refuse(self, error: RouterError) -> None:
        if self.transport.is_closing():
            return
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
