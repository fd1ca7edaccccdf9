"""Queries an idle rpc-server for its version and devices. Never one that may be in use.

A busy rpc-server has one place for connections that wait, and never answers them: a query takes the place
that a restarted coordinator needs. Look at the node's own state first (``harness.monitor``);
``harness.llama.rpc.discovery`` does, and leaves leased backends alone.
"""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

from harness.llama.rpc.messages import (
    COUNT_REPLY_BYTES,
    HEADER_BYTES,
    HELLO_PAYLOADS,
    HELLO_REPLY_BYTES,
    MEMORY_REPLY_BYTES,
    QUERIED_MAJORS,
    Command,
    DeviceMemory,
    ProtocolError,
    Version,
    decode_device_count,
    decode_hello,
    decode_memory,
    memory_request,
    reply_size,
    request,
)

CONNECT_S = 1.0
REPLY_S = 1.0
_READ_LIMIT = 256
_ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER of 0: a connection in a backlog is reset, so that no server answers a client that has left."""


class BackendStatus(StrEnum):
    """The state of an endpoint."""

    IDLE = "idle"
    """An rpc-server that answers."""
    BUSY = "busy"
    """Known to be in use; or it accepts a connection and sends nothing, as one in use, or stopped, does."""
    WRONG_VERSION = "wrong version"
    """An rpc-server whose protocol our coordinator refuses."""
    SILENT = "silent"
    """No connection came about."""
    CLOSED = "closed"
    """Nothing listens."""
    STRANGER = "stranger"
    """Something listens that is no rpc-server."""


class RpcError(Exception):
    """An rpc-server that could not be queried; the message says why, and ``status`` what it is taken for."""

    def __init__(self, status: BackendStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class BackendInfo:
    """What an idle rpc-server says of itself."""

    version: Version
    devices: tuple[DeviceMemory, ...]
    """Empty where the protocol is one whose queries are not known."""

    @property
    def free_bytes(self) -> int:
        """Free memory of all devices."""
        return sum(device.free_bytes for device in self.devices)

    @property
    def total_bytes(self) -> int:
        """Memory of all devices."""
        return sum(device.total_bytes for device in self.devices)


class _Connection:
    """One connection; every read has a deadline."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, endpoint: str, reply_s: float
    ) -> None:
        self._reader, self._writer = reader, writer
        self._endpoint = endpoint
        self._reply_s = reply_s

    async def ask(self, message: bytes, sizes: Collection[int]) -> bytes:
        """Send a request; the payload of its reply, which must have one of ``sizes``."""
        try:
            async with asyncio.timeout(self._reply_s):
                self._writer.write(message)
                header = await self._reader.readexactly(HEADER_BYTES)
                return await self._reader.readexactly(reply_size(header, sizes))
        except TimeoutError:
            raise RpcError(
                BackendStatus.BUSY, f"{self._endpoint} sent nothing for {self._reply_s:g} s"
            ) from None
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise ProtocolError(f"a reply that ends after {error.partial!r}") from None
            raise RpcError(BackendStatus.STRANGER, f"{self._endpoint} closed the connection") from None
        except ConnectionError as error:
            raise RpcError(
                BackendStatus.STRANGER, f"{self._endpoint} closed the connection: {error!r}"
            ) from None


@asynccontextmanager
async def _connect(host: str, port: int, connect_s: float, reply_s: float) -> AsyncIterator[_Connection]:
    endpoint = f"{host}:{port}"
    try:
        async with asyncio.timeout(connect_s):
            reader, writer = await asyncio.open_connection(
                host, port, family=socket.AF_INET, limit=_READ_LIMIT
            )
    except TimeoutError:
        raise RpcError(BackendStatus.SILENT, f"no connection to {endpoint} within {connect_s:g} s") from None
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        if isinstance(error, ConnectionError):
            raise RpcError(BackendStatus.CLOSED, f"{endpoint}: {reason}") from None
        raise RpcError(BackendStatus.SILENT, f"no way to {endpoint}: {reason}") from None
    try:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        yield _Connection(reader, writer, endpoint, reply_s)
    finally:
        writer.transport.abort()


async def ask(host: str, port: int, *, connect_s: float = CONNECT_S, reply_s: float = REPLY_S) -> BackendInfo:
    """Version and devices of an idle rpc-server.

    Args:
        host: IPv4 address.
        connect_s: seconds that a connection may take, and ``reply_s`` each reply.

    Raises:
        RpcError: CLOSED: nothing listens; SILENT: no connection in time; BUSY: connected, and no reply: it
            serves another client, or is stopped; STRANGER: it closed the connection instead of answering, or
            its answer is not that of an rpc-server.
    """
    whole_s = len(HELLO_PAYLOADS) * (connect_s + reply_s)
    try:
        async with asyncio.timeout(whole_s):
            try:
                return await _introduce(host, port, HELLO_PAYLOADS[0], connect_s, reply_s)
            except RpcError as error:
                if error.status is not BackendStatus.STRANGER:
                    raise
                return await _introduce(host, port, HELLO_PAYLOADS[1], connect_s, reply_s)
    except ProtocolError as error:
        raise RpcError(BackendStatus.STRANGER, f"no rpc-server: {error}") from None
    except TimeoutError:
        raise RpcError(BackendStatus.BUSY, f"{host}:{port} was not done after {whole_s:g} s") from None


async def _introduce(host: str, port: int, payload: bytes, connect_s: float, reply_s: float) -> BackendInfo:
    async with _connect(host, port, connect_s, reply_s) as connection:
        version = decode_hello(await connection.ask(request(Command.HELLO, payload), HELLO_REPLY_BYTES))
        return BackendInfo(version, await _devices(connection, version))


async def _devices(connection: _Connection, version: Version) -> tuple[DeviceMemory, ...]:
    if version.major not in QUERIED_MAJORS:
        return ()
    count = 1
    if version.major > 2:
        count = decode_device_count(await connection.ask(request(Command.DEVICE_COUNT), COUNT_REPLY_BYTES))
    return tuple(
        [
            decode_memory(await connection.ask(memory_request(version, device), MEMORY_REPLY_BYTES))
            for device in range(count)
        ]
    )
