"""A router in the test's own event loop, on a loopback port, and connections of raw bytes to it."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn

# uvicorn imports these by name when it starts, and Python 3.11's import lock fails with a KeyError if the
# garbage collector runs at that moment (CPython issue 91351).
import uvicorn.lifespan.off
import uvicorn.lifespan.on
from harness.router.__main__ import server_settings
from harness.router.app import Drain, create_app
from harness.router.config import RouterConfig
from harness.router.http.auth import Gate
from harness.router.http.metrics import Metrics
from starlette.types import ASGIApp

KEY = "a-key-of-one-user"
OTHER_KEY = "the-key-of-another-user"
ADMIN_KEY = "the-key-of-the-admin"


class _Server(uvicorn.Server):
    """Ends when it is told to: uvicorn's own loop looks ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ending = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.ending.wait()


@asynccontextmanager
async def serve(folder: Path, *, admin_key: str = KEY, **settings: Any) -> AsyncIterator[int]:
    """Run a router without models; gives its port."""
    (folder / "router.key").write_text(KEY)
    (folder / "admin.key").write_text(admin_key)
    config = RouterConfig(
        address="127.0.0.1",
        port=0,
        router_key_file=folder / "router.key",
        admin_key_file=folder / "admin.key",
        models_dir=folder,
        log_dir=folder / "coordinator",
        **settings,
    )
    async with _listening(config, create_app(config, Drain())) as port:
        yield port


@asynccontextmanager
async def serve_app(
    app: ASGIApp, metrics: Metrics, *, keys: Sequence[str] = (KEY,), **settings: Any
) -> AsyncIterator[int]:
    """Run an application behind the router's gate and connection limits; gives its port."""
    config = RouterConfig(address="127.0.0.1", port=0, **settings)
    gate = Gate(app, router_keys=keys, admin_key=ADMIN_KEY, metrics=metrics, config=config)
    async with _listening(config, gate, lifespan="off") as port:
        yield port


@asynccontextmanager
async def _listening(config: RouterConfig, app: Gate, lifespan: Any = "auto") -> AsyncIterator[int]:
    settings = server_settings(config, app)
    settings.lifespan = lifespan
    server = _Server(settings)
    # A port of our own: asyncio's listening sockets have SO_REUSEADDR, with which two processes that ask
    # for any port at the same moment may be given the same one, and the second cannot listen.
    listening = socket.socket()
    listening.bind((config.address, config.port))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:
        if serving.done():
            await serving
        await asyncio.sleep(0.01)
    try:
        yield int(listening.getsockname()[1])
    finally:
        server.ending.set()
        await serving


class Connection:
    """One client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @asynccontextmanager
    async def to(
        cls, port: int, *, source: str = "127.0.0.1", window: int = 0
    ) -> AsyncIterator["Connection"]:
        """Connect, and close in the end.

        Args:
            source: the client's own address.
            window: bytes that its kernel takes while nobody reads; 0: as usual.
        """
        client = socket.socket()
        client.setblocking(False)
        client.bind((source, 0))
        if window:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
        # Of a client with a window nothing is read before it asks: a reader takes what its limit allows.
        reader, writer = await asyncio.open_connection(sock=client, limit=window or 2**16)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self._writer.write(data)

    async def drain(self) -> None:
        """Return when the kernel has taken what was sent."""
        await self._writer.drain()

    def leave(self) -> None:
        """Close in the middle of whatever goes on."""
        self._writer.close()

    async def response(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON body of the next response."""
        async with asyncio.timeout(10):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.rstrip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self._reader.readexactly(int(headers["content-length"]))
        return int(status.split()[1]), headers, json.loads(body)

    async def read(self, size: int) -> bytes:
        """So many bytes of what the router sends."""
        async with asyncio.timeout(10):
            return await self._reader.readexactly(size)

    async def rest(self) -> bytes:
        """All that the router sends before it closes the connection."""
        async with asyncio.timeout(10):
            return await self._reader.read()

    async def closed(self) -> bool:
        """Whether the router closes the connection, within 10 s, without sending more."""
        return await self.rest() == b""


async def exchange(port: int, data: bytes, *, source: str = "127.0.0.1") -> tuple[int, dict[str, str], Any]:
    """One request on a connection of its own."""
    async with Connection.to(port, source=source) as connection:
        connection.send(data)
        return await connection.response()
