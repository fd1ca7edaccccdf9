"""The part of ggml's RPC protocol that asks an idle rpc-server what it is: bytes in, facts out.

Read in llama.cpp's ``ggml/src/ggml-rpc/ggml-rpc.cpp`` of builds 6666 (protocol 2.0.0), 6751 and 6792
(3.0.0), 10566 (5.1.0), 10809 (6.0.0), 11434 (7.0.0) and 11549 (8.0.0). A request is the command's byte,
the payload's size (8 bytes, little-endian) and the payload; a reply is the size and the payload. Every reply
requested here has a size known beforehand: no reply makes us allocate or wait for more.
"""

import struct
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum

HEADER_BYTES = 8
"""Size in front of every reply."""

CAPS_BYTES = 24
"""Since protocol 5 a HELLO lists the other transports of each side; zeros: none but TCP."""

HELLO_PAYLOADS = (bytes(CAPS_BYTES), b"")
"""Up to protocol 3 a HELLO is empty, since 5 it holds ``conn_caps``; a server hangs up on the other form."""

HELLO_REPLY_BYTES = frozenset({3, 4 + CAPS_BYTES})
"""Major, minor, patch; then, since ``conn_caps``, a byte of padding and the server's own."""

COUNT_REPLY_BYTES = frozenset({4})
MEMORY_REPLY_BYTES = frozenset({16})

QUERIED_MAJORS = frozenset({2, 3, 5, 6, 7, 8})
"""Protocols whose device queries have been read; of any other only the version is read."""

MAX_REPORTED_DEVICES = 64
"""A server that reports more than this is no rpc-server."""

HASH_THRESHOLD_BYTES = 10 << 20
"""A tensor over this size is offered to a cache by its hash first (ggml-rpc's ``HASH_THRESHOLD``)."""


class Command(IntEnum):
    """Commands that change nothing on the server; HELLO must be the first of a connection."""

    GET_DEVICE_MEMORY = 11
    HELLO = 14
    DEVICE_COUNT = 15


class ProtocolError(Exception):
    """What answers does not speak the protocol."""


@dataclass(frozen=True, order=True)
class Version:
    """Version of the RPC protocol. One version covers many builds."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> "Version":
        """Read ``3.0.0``; a ValueError where it is something else."""
        major, minor, patch = (int(part) for part in text.split("."))
        return cls(major, minor, patch)

    def serves(self, client: "Version") -> bool:
        """Whether a coordinator that speaks ``client`` accepts this server (check_server_version)."""
        return self.major == client.major and self.minor <= client.minor

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one device of a backend, in bytes, as rpc-server reports it.

    Before build 6790 a CPU device reports its total as free; later ones report the host's, not a container's.
    """

    free_bytes: int
    total_bytes: int


def request(command: Command, payload: bytes = b"") -> bytes:
    """The bytes of one request."""
    return struct.pack("<BQ", command, len(payload)) + payload


def memory_request(version: Version, device: int) -> bytes:
    """Ask for the memory of one device; protocol 2 knows one device and takes no number."""
    return request(Command.GET_DEVICE_MEMORY, struct.pack("<I", device) if version.major > 2 else b"")


def reply_size(header: bytes, allowed: Collection[int]) -> int:
    """The size in a reply's header; a ProtocolError where the reply cannot have it."""
    if len(header) != HEADER_BYTES:
        raise ProtocolError(f"a reply's header of {len(header)} bytes")
    (size,) = struct.unpack("<Q", header)
    if size not in allowed:
        raise ProtocolError(f"a reply that begins with {header!r}")
    return int(size)


def decode_hello(payload: bytes) -> Version:
    """The server's protocol version; a ProtocolError for another size, or a version of 0."""
    _check(payload, HELLO_REPLY_BYTES)
    version = Version(*payload[:3])
    if version.major == 0:
        raise ProtocolError(f"protocol version {version}")
    return version


def decode_device_count(payload: bytes) -> int:
    """How many devices the server offers; a ProtocolError for another size, or more than can be."""
    _check(payload, COUNT_REPLY_BYTES)
    (count,) = struct.unpack("<I", payload)
    if count > MAX_REPORTED_DEVICES:
        raise ProtocolError(f"{count} devices")
    return int(count)


def decode_memory(payload: bytes) -> DeviceMemory:
    """Free and total memory of one device; a ProtocolError for another size."""
    _check(payload, MEMORY_REPLY_BYTES)
    return DeviceMemory(*struct.unpack("<QQ", payload))


def _check(payload: bytes, allowed: Collection[int]) -> None:
    if len(payload) not in allowed:
        raise ProtocolError(f"a reply of {len(payload)} bytes")
