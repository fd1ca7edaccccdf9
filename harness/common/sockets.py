"""This machine's own TCP socket table: who listens, and who is connected to whom. Nothing is connected to."""

import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_TABLES = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
_STATES = {"01": "ESTABLISHED", "04": "FIN_WAIT1", "05": "FIN_WAIT2", "08": "CLOSE_WAIT", "0A": "LISTEN"}
_MAPPED = f"{0:016X}{struct.unpack('=I', bytes((0, 0, 255, 255)))[0]:08X}"
"""How the table of IPv6 begins an IPv4 address."""


@dataclass(frozen=True)
class TcpSocket:
    """One end of a connection, or a listener. Endpoints are ``address:port``."""

    local: str
    peer: str
    state: str
    """``ESTABLISHED``, ``LISTEN``, ...; the kernel's number for a state that is not in ``_STATES``."""
    unread_bytes: int
    """Of a listener: connections that wait to be accepted."""
    unsent_bytes: int
    """Sent and not yet acknowledged by the peer's kernel, or not sent yet."""
    inode: str

    @property
    def ports(self) -> frozenset[int]:
        """Of both ends."""
        return frozenset(int(end.rpartition(":")[2]) for end in (self.local, self.peer))


def tcp_sockets(tables: Iterable[Path] = _TABLES) -> Iterator[TcpSocket]:
    """Every socket in the tables that exist (proc(5), ``net/tcp``)."""
    for table in tables:
        if table.exists():
            for line in table.read_text().splitlines()[1:]:
                _, local, peer, state, queues, *_, inode = line.split()[:10]
                unsent, unread = (int(part, 16) for part in queues.split(":"))
                state = _STATES.get(state, state)
                yield TcpSocket(_endpoint(local), _endpoint(peer), state, unread, unsent, inode)


def _endpoint(written: str) -> str:
    """``address:port`` of an IPv4 endpoint, which the table writes in the machine's byte order."""
    address, _, port = written.removeprefix(_MAPPED).partition(":")
    if len(address) == 8:
        address = socket.inet_ntoa(struct.pack("=I", int(address, 16)))
    return f"{address}:{int(port, 16)}"


def port_taken(port: int) -> bool:
    """Whether a process listens on ``port``, on any address."""
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
    try:
        return any(_target(entry) in wanted for entry in Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:
        return False
    except PermissionError:
        return bool(wanted)


def connected_endpoints(tables: Iterable[Path] = _TABLES) -> frozenset[str]:
    """Every ``address:port`` to which some process of this machine has a connection.

    Only the head node may connect to a backend, so there this says which backends are in use.
    """
    return frozenset(row.peer for row in tcp_sockets(tables) if row.state == "ESTABLISHED")


def has_connection(local: str, remote: str) -> bool:
    """Whether this machine has a connection between two endpoints, be it one that is being closed."""
    return any((row.local, row.peer) == (local, remote) for row in tcp_sockets())


def _listeners(port: int) -> set[str]:
    return {row.inode for row in tcp_sockets() if row.state == "LISTEN" and row.local.endswith(f":{port}")}


def _target(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except FileNotFoundError:
        return ""
