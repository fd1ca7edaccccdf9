"""A router in the test's own event loop, on a loopback port, and connections of raw bytes to it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from harness.router.__main__ import server_settings
from harness.router.app import Drain, create_app
from harness.router.config import RouterConfig

KEY = "a-key-of-one-user"


@asynccontextmanager
async def serve(folder: Path, **settings: Any) -> AsyncIterator[int]:
    """Run a router without models; gives its port."""
    for name in ("router", "admin"):
        (folder / f"{name}.key").write_text(KEY)
    config = RouterConfig(
        address="127.0.0.1",
        port=0,
        router_key_file=folder / "router.key",
        admin_key_file=folder / "admin.key",
        models_dir=folder,
        log_dir=folder / "coordinator",
        **settings,
    )
    server = uvicorn.Server(server_settings(config, create_app(config, Drain())))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done()
        await asyncio.sleep(0.01)
    try:
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        await serving


class Connection:
    """One client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator["Connection"]:
        """Connect, and close in the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self._writer.write(data)

    async def response(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON body of the next response."""
        async with asyncio.timeout(10):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            status, *lines = head.rstrip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self._reader.readexactly(int(headers["content-length"]))
        return int(status.split()[1]), headers, json.loads(body)

    async def closed(self) -> bool:
        """Whether the router closes the connection, within 10 s, without sending more."""
        async with asyncio.timeout(10):
            return await self._reader.read() == b""


async def exchange(port: int, data: bytes) -> tuple[int, dict[str, str], Any]:
    """One request on a connection of its own."""
    async with Connection.to(port) as connection:
        connection.send(data)
        return await connection.response()
