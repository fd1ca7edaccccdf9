"""The router's service inside another program: its application started, asked and stopped without a port."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from harness.errors import HarnessError
from harness.router.proxy.upstream import LEAVING

_END = object()


@dataclass
class Reply:
    """An answer whose body comes piece by piece."""

    status: int
    headers: dict[str, str]
    body: AsyncIterator[bytes]


@dataclass
class _Exchange:
    """One request to the application, and what it has sent so far."""

    body: bytes
    sent: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    asked: bool = False

    async def receive(self) -> Message:
        if self.asked:
            await asyncio.Event().wait()
        self.asked = True
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def send(self, message: Message) -> None:
        await self.sent.put(message)


class EmbeddedApp:
    """Runs an ASGI application in this event loop."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._told: asyncio.Queue[Message] = asyncio.Queue()
        self._said: asyncio.Queue[Message] = asyncio.Queue()
        self._life: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the application.

        Raises:
            HarnessError: it does not start.
        """
        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._life = asyncio.create_task(self._run(scope))
        await self._told.put({"type": "lifespan.startup"})
        said = await self._said.get()
        if said["type"] != "lifespan.startup.complete":
            raise HarnessError(f"the router does not start: {said.get('message') or 'no reason given'}")

    async def _run(self, scope: Scope) -> None:
        await self._app(scope, self._told.get, self._said.put)

    async def close(self) -> None:
        """Stop it, and with it the coordinator."""
        if self._life is None or self._life.done():
            return
        await self._told.put({"type": "lifespan.shutdown"})
        await self._said.get()
        await self._life

    async def ask(self, path: str, body: dict[str, Any], key: str) -> Reply:
        """Send a POST; the answer has begun.

        Leaving the iteration over its body early ends the request.
        """
        exchange, leaving = _Exchange(json.dumps(body).encode()), []  # type: ignore[var-annotated]
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [
                (b"content-type", b"application/json"),
                (b"authorization", f"Bearer {key}".encode()),
            ],
            "client": ("127.0.0.1", 0),
            "server": ("embedded", 0),
            "state": {LEAVING: leaving},
        }

        async def run() -> None:
            try:
                await self._app(scope, exchange.receive, exchange.send)
            finally:
                await exchange.sent.put(_END)

        task = asyncio.create_task(run())
        start = await exchange.sent.get()
        if start is _END:
            await task  # raises what went wrong
            raise HarnessError("the router gave no answer")
        headers = {name.decode(): value.decode("latin-1") for name, value in start.get("headers", [])}

        async def pieces() -> AsyncIterator[bytes]:
            try:
                while (message := await exchange.sent.get()) is not _END:
                    if piece := message.get("body", b""):
                        yield piece
            finally:
                if not task.done():
                    for leave in leaving:
                        leave()
                    task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

        return Reply(start["status"], headers, pieces())
