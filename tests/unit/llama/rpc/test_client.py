"""The wire protocol against scripted peers: doubles of servers that are foreign, slow or hostile."""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from harness.llama.rpc.client import BackendStatus, RpcError, ask
from harness.llama.rpc.discovery import probe
from harness.llama.rpc.messages import (
    CAPS_BYTES,
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
from harness.llama.rpc.messages import Command as C
from hypothesis import given
from hypothesis import strategies as st

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GIB = 1 << 30
QUICK = {"connect_s": 1.0, "reply_s": 0.2}


@asynccontextmanager
async def peer(handle: Handler) -> AsyncIterator[int]:
    """A scripted peer on loopback; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def reply(payload: bytes) -> bytes:
    return struct.pack("<Q", len(payload)) + payload


def double(version: tuple[int, int, int], devices: int = 1, caps: int = 0) -> Handler:
    """Answers as ggml-rpc.cpp of that protocol does; hangs up on another form of HELLO."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command, size = struct.unpack("<BQ", await reader.readexactly(9))
        if command != C.HELLO or size != caps:
            return
        await reader.readexactly(size)
        writer.write(reply(bytes(version) + (bytes(1 + caps) if caps else b"")))
        while True:
            command, size = struct.unpack("<BQ", await reader.readexactly(9))
            body = await reader.readexactly(size)
            if command == C.DEVICE_COUNT and version[0] > 2:
                writer.write(reply(struct.pack("<I", devices)))
            elif command == C.GET_DEVICE_MEMORY and size == (4 if version[0] > 2 else 0):
                number = int.from_bytes(body, "little") + 1
                writer.write(reply(struct.pack("<QQ", number * GIB, 2 * number * GIB)))
            else:
                return

    return handle


@pytest.mark.parametrize(
    ("version", "caps", "devices"),
    [
        ((2, 0, 0), 0, 1),
        ((3, 0, 0), 0, 2),
        ((5, 1, 0), CAPS_BYTES, 2),
        ((6, 0, 0), CAPS_BYTES, 1),
        ((7, 0, 0), CAPS_BYTES, 3),
        ((8, 0, 0), CAPS_BYTES, 2),
    ],
    ids=["6666", "6751", "10566", "10809", "11434", "11549"],
)
async def test_every_known_protocol_tells_version_and_devices(
    version: tuple[int, int, int], caps: int, devices: int
) -> None:
    async with peer(double(version, devices, caps)) as port:
        info = await ask("127.0.0.1", port)
    assert info.version == Version(*version)
    assert info.devices == tuple(DeviceMemory(n * GIB, 2 * n * GIB) for n in range(1, devices + 1))
    assert info.total_bytes == 2 * info.free_bytes


async def test_unknown_protocol_is_asked_for_nothing_but_its_version() -> None:
    asked = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(9)
        writer.write(reply(bytes((9, 1, 0))))
        asked.append(await reader.read())

    async with peer(handle) as port:
        info = await ask("127.0.0.1", port)
        await asyncio.sleep(0)
    assert (str(info.version), info.devices) == ("9.1.0", ())
    assert asked in ([], [b""])


async def test_peer_that_says_nothing_is_left_at_once_and_called_busy() -> None:
    left = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(9)
        try:
            await reader.read()
        finally:
            left.set()

    async with peer(handle) as port:
        with pytest.raises(RpcError, match=r"sent nothing for 0\.2 s"):
            await ask("127.0.0.1", port, **QUICK)
        await asyncio.wait_for(left.wait(), 5)
        found = await probe("127.0.0.1", port, **QUICK)
    assert found.status is BackendStatus.BUSY
    assert "serves another client, or is stopped" in found.reason


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        struct.pack("<Q", 1 << 62),
        struct.pack("<Q", 0),
        reply(bytes(3)),
        reply(b"\x03\x00\x00")[:10],
    ],
    ids=["http", "ssh", "huge", "empty", "version nought", "cut"],
)
async def test_other_services_and_hostile_sizes_are_strangers(said: bytes) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await writer.drain()

    async with peer(handle) as port:
        with pytest.raises(RpcError):
            await ask("127.0.0.1", port, **QUICK)
        assert (await probe("127.0.0.1", port, **QUICK)).status is BackendStatus.STRANGER


async def test_peer_that_claims_endless_devices_is_not_believed() -> None:
    async with peer(double((3, 0, 0), devices=1 << 31)) as port:
        with pytest.raises(RpcError, match=r"no rpc-server: .* devices"):
            await ask("127.0.0.1", port)


async def test_peer_that_drips_its_answers_is_left_at_the_whole_deadline() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(9)
        writer.write(reply(bytes((3, 0, 0))))
        await reader.readexactly(9)
        writer.write(reply(struct.pack("<I", 64)))
        while True:
            await reader.readexactly(13)
            await asyncio.sleep(0.1)
            writer.write(reply(bytes(16)))

    async with peer(handle) as port:
        with pytest.raises(RpcError, match="not done after"):
            await ask("127.0.0.1", port, connect_s=0.2, reply_s=0.2)


async def test_port_without_a_listener_is_closed() -> None:
    async with peer(double((3, 0, 0))) as port:
        pass
    with pytest.raises(RpcError, match="refused"):
        await ask("127.0.0.1", port)
    assert (await probe("127.0.0.1", port)).status is BackendStatus.CLOSED


async def test_address_without_a_way_is_silent() -> None:
    with pytest.raises(RpcError, match=r"no way to|no connection to") as failed:
        await ask("255.255.255.255", 50052, **QUICK)
    assert failed.value.status is BackendStatus.SILENT


async def test_version_that_our_coordinator_refuses_is_named_beside_ours() -> None:
    async with peer(double((2, 0, 0))) as port:
        found = await probe("127.0.0.1", port, expected=Version(3, 0, 0), node="a")
    assert found.status is BackendStatus.WRONG_VERSION
    assert found.reason == "speaks protocol 2.0.0, our coordinator 3.0.0"
    assert found.as_dict()["devices"] == [{"free_bytes": GIB, "total_bytes": 2 * GIB}]


@pytest.mark.parametrize(
    ("server", "client", "served"),
    [
        ("3.0.0", "3.0.0", True),
        ("3.0.1", "3.0.0", True),
        ("3.1.0", "3.0.0", False),
        ("2.0.0", "3.0.0", False),
    ],
)
def test_version_is_judged_as_llama_cpp_judges_it(server: str, client: str, served: bool) -> None:
    assert Version.parse(server).serves(Version.parse(client)) is served


def test_requests_are_the_bytes_that_the_source_reads() -> None:
    assert request(C.HELLO) == b"\x0e" + bytes(8)
    assert request(C.HELLO, bytes(24)) == b"\x0e\x18" + bytes(7) + bytes(24)
    assert memory_request(Version(2, 0, 0), 0) == b"\x0b" + bytes(8)
    assert memory_request(Version(3, 0, 0), 1) == b"\x0b\x04" + bytes(7) + b"\x01\x00\x00\x00"


@given(st.binary(max_size=64))
def test_no_bytes_do_more_than_raise_a_protocol_error(data: bytes) -> None:
    for decode in (
        decode_hello,
        decode_device_count,
        decode_memory,
        lambda header: reply_size(header, {3}),
    ):
        try:
            decode(data)
        except ProtocolError:
            continue
