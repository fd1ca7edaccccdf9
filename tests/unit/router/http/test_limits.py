"""A real router on a loopback port, and clients that send too much, too slowly or nonsense."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.router.http.limits import HeadWithBody
from tests.integration.router_stack import free_port, listens, wait_for

KEY = "a-key-of-one-user"
HEAD = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer " + KEY.encode() + b"\r\n"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder, port = tmp_path_factory.mktemp("limits"), free_port()
    for name in ("router", "admin"):
        (folder / f"{name}.key").write_text(KEY)
    config = {
        "address": "127.0.0.1",
        "port": port,
        "router_key_file": str(folder / "router.key"),
        "admin_key_file": str(folder / "admin.key"),
        "models_dir": str(folder),
        "head_timeout_s": 0.3,
        "head_limit_bytes": 4096,
        "headers_limit": 20,
        "connections_limit": 3,
        "body_limit_bytes": 100,
    }
    (folder / "router.json").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        router = subprocess.Popen(
            [sys.executable, "-m", "harness.router", "--config", str(folder / "router.json")],
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parents[4],
            env=os.environ,
        )
    try:
        wait_for(lambda: listens(port), 60, "router")
        yield port
    finally:
        router.terminate()
        router.wait(20)


def said(port: int, data: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of what comes back before the router closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(data)
        return heard(client)


def heard(client: socket.socket) -> tuple[int, dict[str, str], Any]:
    answer = b""
    while b"\r\n\r\n" not in answer or not _whole(answer):
        piece = client.recv(65536)
        assert piece, f"closed after {answer!r}"
        answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, json.loads(body)


def _whole(answer: bytes) -> bool:
    head, _, body = answer.lower().partition(b"\r\n\r\n")
    return len(body) >= int(head.partition(b"content-length: ")[2].split(b"\r")[0])


def test_whole_request_is_answered(port: int) -> None:
    status, _, body = said(port, HEAD + b"\r\n")
    assert (status, body["data"]) == (200, [])


@pytest.mark.parametrize(
    ("data", "status", "error_class"),
    [
        (HEAD, 408, "head_timeout"),
        (b"", 408, "head_timeout"),
        (HEAD + b"x: " + b"a" * 9000, 431, "head_too_large"),
        (HEAD + b"x: " + b"a" * 9000 + b"\r\n\r\n", 431, "head_too_large"),
        (HEAD + b"".join(b"x%d: a\r\n" % n for n in range(30)) + b"\r\n", 431, "head_too_large"),
        (b"\x16\x03\x01 this is not HTTP\r\n\r\n", 400, "bad_request"),
    ],
    ids=["cut", "silent", "endless", "long", "many headers", "not HTTP"],
)
def test_head_beyond_its_bounds_is_refused_with_a_typed_error(
    port: int, data: bytes, status: int, error_class: str
) -> None:
    got, headers, body = said(port, data)
    assert (got, body["error"]["class"]) == (status, error_class)
    assert headers["content-type"] == "application/json"


def test_kept_open_connection_may_not_send_its_next_head_slowly(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(HEAD + b"\r\n")
        assert heard(client)[0] == 200
        client.sendall(HEAD)
        status, _, body = heard(client)
    assert (status, body["error"]["class"]) == (408, "head_timeout")


def test_body_beyond_its_bounds_is_refused(port: int) -> None:
    head = HEAD.replace(b"GET /v1/models", b"POST /v1/chat/completions")
    status, _, body = said(port, head + b"content-length: 200\r\n\r\n" + b"a" * 200)
    assert (status, body["error"]["class"]) == (413, "too_large")


def test_connection_beyond_the_limit_is_told_to_come_back(port: int) -> None:
    open_ones = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(3)]
    try:
        for client in open_ones:
            client.sendall(HEAD + b"\r\n")
            assert heard(client)[0] == 200
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            status, headers, body = heard(client)
    finally:
        for client in open_ones:
            client.close()
    assert (status, body["error"]["class"]) == (503, "too_many_connections")
    assert headers["retry-after"] == "1"


class Wire(asyncio.Transport):
    """Keeps each write apart: as many system calls."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: Any) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.writes.append(b"closed")


async def test_head_leaves_with_what_follows_it_at_once_and_alone_where_nothing_does() -> None:
    wire = Wire()
    transport = HeadWithBody(wire, asyncio.get_running_loop())
    transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
    transport.write(b"a")
    transport.write(b"b")
    await asyncio.sleep(0)
    transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await asyncio.sleep(0)
    transport.write(b"c")
    transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")
    transport.close()
    await asyncio.sleep(0)
    assert wire.writes == [
        b"HTTP/1.1 200 OK\r\n\r\na",
        b"b",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"c",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"closed",
    ]
