"""rpc-server's sockets from the node's own socket table: nothing here ever connects to it.

rpc-server serves one client and lets one more wait; a connection made to see whether it lives would
take that place. /proc/net/tcp says the same without being noticed.
"""

import socket
import sys
from pathlib import Path

from harness.monitor.readers.memory import PROC
from harness.monitor.sample import RpcSocket

_ESTABLISHED = "01"
_LISTEN = "0A"
_ANY_ADDRESS = "0" * 8


def rpc_socket(address: str, port: int, proc: Path = PROC) -> RpcSocket:
    """State of the socket that listens on ``address``:``port`` (or on every address)."""
    return parse_tcp_table((proc / "net" / "tcp").read_text(), address, port)


def parse_tcp_table(table: str, address: str, port: int) -> RpcSocket:
    """Pick the RPC port's rows from the text of /proc/net/tcp.

    Of a listening socket ``rx_queue`` counts the connections that wait to be accepted. Such a connection is
    already ESTABLISHED but has no inode yet: the one with an inode is the one being served.
    """
    suffix = f":{port:04X}"
    ours = {_hex_address(address) + suffix, _ANY_ADDRESS + suffix}
    listening, backlog, peer = False, 0, None
    for line in table.splitlines()[1:]:
        if suffix not in line:
            continue
        _, local, remote, state, queues, _, _, _, _, inode, *_ = line.split()
        if state == _LISTEN and local in ours:
            listening = True
            backlog += int(queues.partition(":")[2], 16)
        elif state == _ESTABLISHED and local.endswith(suffix) and inode != "0":
            peer = _readable(remote)
    return RpcSocket(listening=listening, backlog=backlog, peer=peer)


def _hex_address(address: str) -> str:
    packed = socket.inet_aton(address)
    return (packed[::-1] if sys.byteorder == "little" else packed).hex().upper()


def _readable(endpoint: str) -> str:
    address, _, port = endpoint.partition(":")
    packed = bytes.fromhex(address)
    return f"{socket.inet_ntoa(packed[::-1] if sys.byteorder == 'little' else packed)}:{int(port, 16)}"
