"""What the kernel's socket table says of the coordinator's port and the backends; nothing is connected to."""

import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_ESTABLISHED, _LISTEN = "01", "0A"


@dataclass(frozen=True)
class _Row:
    local: str
    remote: str
    state: str
    inode: str


def _rows() -> Iterator[_Row]:
    for table in _TABLES:
        if table.exists():
            for line in table.read_text().splitlines()[1:]:
                fields = line.split()
                yield _Row(fields[1], fields[2], fields[3], fields[9])


def port_taken(port: int) -> bool:
    """Whether somebody listens on ``port``, on whatever address."""
    return bool(_listeners(port))


def can_listen(port: int, option: str) -> bool:
    """Whether a server that sets this socket option could listen on a loopback port now.

    Args:
        option: ``SO_REUSEADDR`` or ``SO_REUSEPORT``; a connection in TIME_WAIT without it is in the way.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def listens_itself(pid: int, port: int) -> bool:
    """Whether one of the listeners on ``port`` belongs to the process.

    Where its descriptors may not be read, it is taken to be the listener.
    """
    wanted = {f"socket:[{inode}]" for inode in _listeners(port)}
    folder = Path(f"/proc/{pid}/fd")
    try:
        return any(_target(entry) in wanted for entry in folder.iterdir())
    except FileNotFoundError:
        return False
    except PermissionError:
        return bool(wanted)


def connected(endpoints: Sequence[str]) -> list[str]:
    """Those of the endpoints to which this machine has a connection now.

    Only the head node may connect to a backend, so this is the whole truth about who uses it.
    """
    remotes = {row.remote for row in _rows() if row.state == _ESTABLISHED}
    return [endpoint for endpoint in endpoints if not remotes.isdisjoint(_written(endpoint))]


def has_connection(local: str, remote: str) -> bool:
    """Whether this machine knows of a connection between two endpoints, be it one that is being closed."""
    own, other = _written(local), _written(remote)
    return any(row.local in own and row.remote in other for row in _rows())


def _listeners(port: int) -> set[str]:
    return {row.inode for row in _rows() if row.state == _LISTEN and row.local.endswith(f":{port:04X}")}


def _target(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except FileNotFoundError:
        return ""


def _written(endpoint: str) -> set[str]:
    """An IPv4 endpoint as the tables write it: 32 bits in the machine's order, and mapped into IPv6."""
    address, _, port = endpoint.rpartition(":")
    number = struct.unpack("=I", socket.inet_aton(address))[0]
    mapped = struct.unpack("=I", b"\0\0\xff\xff")[0]
    return {f"{number:08X}:{int(port):04X}", f"{0:016X}{mapped:08X}{number:08X}:{int(port):04X}"}
