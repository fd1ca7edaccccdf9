"""Who this machine already talks to, from its own socket table: nothing here connects to anything."""

import socket
import struct
import sys
from pathlib import Path

_TABLE = Path("/proc/self/net/tcp")
_ESTABLISHED = "01"


def connected_endpoints(table: Path = _TABLE) -> frozenset[str]:
    """Every ``address:port`` to which some process of this machine holds a connection.

    On the head node, which alone is let through to the backends, this says which of them serve a coordinator.
    """
    rows = [line.split() for line in table.read_text().splitlines()[1:]]
    return frozenset(_readable(row[2]) for row in rows if row[3] == _ESTABLISHED)


def _readable(endpoint: str) -> str:
    address, _, port = endpoint.partition(":")
    packed = struct.pack("<I" if sys.byteorder == "little" else ">I", int(address, 16))
    return f"{socket.inet_ntoa(packed)}:{int(port, 16)}"
