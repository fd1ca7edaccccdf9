"""The node's network from /proc/net: traffic of its interface, and rpc-server's sockets.

Nothing here ever connects to rpc-server: it serves one client and lets one more wait; a connection made to
see whether it lives would take that place. The socket table holds the same information and disturbs nobody.
"""

import socket
import sys
from pathlib import Path

from harness.monitor.readers import PROC, Rate
from harness.monitor.sample import Network, RpcSocket

_ESTABLISHED = "01"
_LISTEN = "0A"
_ANY_ADDRESS = "0" * 8


class NetworkReader:
    """Counters of the interface that carries the node's address; finds it again when it is gone."""

    def __init__(self, address: str, proc: Path = PROC) -> None:
        self._address = address
        self._proc = proc
        self._interface: str | None = None
        self._received, self._sent = Rate(), Rate()

    def read(self, now_s: float) -> Network | None:
        """Counters and rates now; None while no interface has the address's subnet.

        Args:
            now_s: monotonic clock, seconds.
        """
        if self._interface is None:
            self._interface = interface_of((self._proc / "net" / "route").read_text(), self._address)
        for line in (self._proc / "net" / "dev").read_text().splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == self._interface:
                fields = counters.split()
                received, sent = int(fields[0]), int(fields[8])
                return Network(
                    interface=self._interface,
                    received_bytes=received,
                    sent_bytes=sent,
                    received_bytes_per_s=self._received(now_s, received),
                    sent_bytes_per_s=self._sent(now_s, sent),
                )
        self._interface = None
        return None


def interface_of(routes: str, address: str) -> str | None:
    """Interface whose directly connected subnet holds ``address``, from the text of /proc/net/route.

    The routing table is read because a query for an interface's address takes a socket of a family
    that the monitor's sandbox does not admit.
    """
    if address.startswith("127."):
        return "lo"
    number = int.from_bytes(socket.inet_aton(address), sys.byteorder)
    best: tuple[int, str | None] = (0, None)
    for line in routes.splitlines()[1:]:
        interface, destination, gateway, *_, mask, _mtu, _window, _irtt = line.split()
        bits = int(mask, 16)
        connected = int(gateway, 16) == 0 and number & bits == int(destination, 16)
        if connected and bits.bit_count() > best[0]:
            best = (bits.bit_count(), interface)
    return best[1]


def rpc_socket(address: str, port: int, proc: Path = PROC) -> RpcSocket:
    """State of the socket that listens on ``address``:``port`` (or on every address)."""
    return parse_tcp_table((proc / "net" / "tcp").read_text(), address, port)


def parse_tcp_table(table: str, address: str, port: int) -> RpcSocket:
    """Pick the RPC port's rows from the text of /proc/net/tcp.

    Of a listening socket ``rx_queue`` counts the connections that wait to be accepted. Such a connection is
    already ESTABLISHED but has no inode yet: the one with an inode is the one being served.
    """
    suffix = f":{port:04X}"
    ours = {_host_order(socket.inet_aton(address)).hex().upper() + suffix, _ANY_ADDRESS + suffix}
    listening, backlog, peer = False, 0, None
    for line in table.splitlines()[1:]:
        if suffix not in line:
            continue
        _, local, remote, state, queues, _, _, _, _, inode, *_ = line.split()
        if state == _LISTEN and local in ours:
            listening = True
            backlog += int(queues.partition(":")[2], 16)
        elif state == _ESTABLISHED and local.endswith(suffix) and inode != "0":
            peer_address, _, peer_port = remote.partition(":")
            peer = f"{socket.inet_ntoa(_host_order(bytes.fromhex(peer_address)))}:{int(peer_port, 16)}"
    return RpcSocket(listening=listening, backlog=backlog, peer=peer)


def _host_order(address: bytes) -> bytes:
    """An IPv4 address from network to host byte order, or back."""
    return address[::-1] if sys.byteorder == "little" else address
