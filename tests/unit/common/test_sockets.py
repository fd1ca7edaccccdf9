"""The kernel's socket table, with real sockets."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from harness.common.sockets import can_listen, connected_endpoints, has_connection, listens_itself, port_taken

TABLE = Path(__file__).parents[2] / "data" / "monitor" / "proc" / "net" / "tcp"


def test_listener_is_seen_and_known_by_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert port_taken(port)
        assert listens_itself(os.getpid(), port)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
            assert not listens_itself(other.pid, port)
            other.communicate(b"\n")
        assert not listens_itself(other.pid, port), "a process that is gone"
    assert not port_taken(port)


def test_port_that_a_closed_connection_of_another_kind_of_server_keeps_is_not_free() -> None:
    """Up to 6792 llama-server sets SO_REUSEPORT alone, later SO_REUSEADDR alone."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server.accept()[0].close()  # it closes first, so the connection waits on its side
            assert client.recv(1) == b""
    assert can_listen(port, "SO_REUSEPORT")
    assert not can_listen(port, "SO_REUSEADDR")


def test_backend_with_a_connection_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as idle:
        used, unused = [f"127.0.0.1:{each.getsockname()[1]}" for each in (server, idle)]
        assert not connected_endpoints() & {used, unused}
        with socket.create_connection(server.getsockname()):
            assert connected_endpoints() & {used, unused} == {used}
        server.accept()[0].close()
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        with socket.socket(socket.AF_INET6) as client:
            client.connect(("::ffff:127.0.0.1", port))
            assert f"127.0.0.1:{port}" in connected_endpoints()


def test_connection_is_known_by_both_its_ends_and_while_it_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        remote = f"127.0.0.1:{server.getsockname()[1]}"
        client = socket.create_connection(server.getsockname())
        local = f"127.0.0.1:{client.getsockname()[1]}"
        assert has_connection(local, remote)
        assert not has_connection(local, "127.0.0.1:9")
        assert not has_connection("127.0.0.1:9", remote)
        client.close()
        assert has_connection(local, remote), "closed on this side, not on the other"
        server.accept()[0].close()


def test_connections_are_read_from_the_socket_table() -> None:
    rows = [line.split() for line in TABLE.read_text().splitlines()[1:]]
    established = [row[2] for row in rows if row[3] == "01"]
    found = connected_endpoints([TABLE])
    assert len(found) == len(set(established)) > 0
    assert all(one.count(".") == 3 and one.rpartition(":")[2].isdigit() for one in found)
