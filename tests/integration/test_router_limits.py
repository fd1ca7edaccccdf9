"""Clients that take more than their part, over raw sockets, from a router that runs as its own process."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.integration.router_stack import (
    ADMIN_KEY,
    ROUTER_KEY,
    RouterStack,
    free_port,
    listens,
    wait_for,
)

pytestmark = pytest.mark.integration

OTHER_KEY = "the-key-of-another-user"
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "262144"}
"""As the unit has it."""
UPSTREAM = Path(__file__).parents[2] / "benchmarks" / "router_upstream.py"
MIB = 1024 * 1024
BODY_BYTES = 30 * MIB


class Client:
    """One connection of raw bytes."""

    def __init__(self, port: int, *, window: int = 0) -> None:
        self.socket = socket.socket()
        if window:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self.socket.settimeout(60)
        self.socket.connect(("127.0.0.1", port))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def status(self) -> int:
        """Status of the next response; 0 where the connection ends without one."""
        line = self.socket.makefile("rb").readline()
        return int(line.split()[1]) if line else 0


def head(path: str, key: str = ROUTER_KEY, *, size: int | None = None) -> bytes:
    method = "GET" if size is None else "POST"
    lines = [f"{method} {path} HTTP/1.1", "host: x", f"authorization: Bearer {key}"]
    lines += [] if size is None else [f"content-length: {size}", "content-type: application/json"]
    return "\r\n".join([*lines, "", ""]).encode()


def chat(model: str, key: str = ROUTER_KEY, **more: Any) -> bytes:
    fields = {"model": model, "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2} | more
    body = json.dumps(fields).encode()
    return head("/v1/chat/completions", key, size=len(body)) + body


def resident_mib(pid: int, what: str = "VmRSS") -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) / 1024


def metric(page: str, name: str) -> float:
    return float(next(line for line in page.splitlines() if line.startswith(name + " ")).split()[1])


class Streaming:
    """A router before a server that streams as much as it is asked for, at once."""

    def __init__(self, folder: Path) -> None:
        self.port, upstream = free_port(), free_port()
        (folder / "router.key").write_text(ROUTER_KEY)
        (folder / "admin.key").write_text(ADMIN_KEY)
        config = {
            "address": "127.0.0.1",
            "port": self.port,
            "router_key_file": str(folder / "router.key"),
            "admin_key_file": str(folder / "admin.key"),
            "models_dir": str(folder),
            "log_dir": str(folder / "starts"),
            "state_dir": str(folder),
            "send_timeout_s": 2,
            "pool": [{"node": "node1", "url": f"http://127.0.0.1:{upstream}", "models": ["m"]}],
        }
        (folder / "router.json").write_text(json.dumps(config))
        router = [sys.executable, "-m", "harness.router", "--config", str(folder / "router.json")]
        with (folder / "log").open("wb") as log:
            self._upstream = subprocess.Popen([sys.executable, str(UPSTREAM), str(upstream)], stderr=log)
            self.router = subprocess.Popen(router, stderr=log, env=os.environ | ENVIRONMENT)
        wait_for(lambda: listens(self.port) and listens(upstream), 60, "router and its server")

    def metrics(self) -> str:
        with Client(self.port) as client:
            client.send(head("/metrics").replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
            return client.socket.makefile("rb").read().decode()

    def close(self) -> None:
        for process in (self.router, self._upstream):
            process.kill()
            process.wait(10)


@pytest.fixture
def streaming(tmp_path: Path) -> Iterator[Streaming]:
    streaming = Streaming(tmp_path)
    yield streaming
    streaming.close()


def test_streams_that_nobody_reads_are_given_up_and_hold_little_memory(streaming: Streaming) -> None:
    with ExitStack() as stack:
        for _ in range(200):
            client = stack.enter_context(Client(streaming.port, window=2048))
            client.send(chat("m", stream=True, max_tokens=5_000, seed=0))
        timed_out = 'llama_router_limits_reached_total{limit="send_timeout"}'
        wait_for(lambda: metric(streaming.metrics(), timed_out) == 200, 120, "end of the streams")
        assert metric(streaming.metrics(), "llama_router_requests_in_flight") == 0
        assert metric(streaming.metrics(), "llama_router_body_bytes") == 0
        with Client(streaming.port) as client:
            client.send(chat("m"))
            assert client.status() == 200
    assert resident_mib(streaming.router.pid, "VmHWM") < 300


@pytest.fixture(scope="module")
def stack(
    llama_build: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RouterStack]:
    folder = tmp_path_factory.mktemp("limits")
    limits = {
        "state_dir": str(folder),
        "queue_limit": 80,
        "connections_limit": 70,
        "connections_per_address": 70,
        "admin_reserve": 10,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        stack = RouterStack(llama_build, smollm2, folder, **limits)
        try:
            (folder / "router.key").write_text(f"{ROUTER_KEY}\n{OTHER_KEY}\n")
            stack.router.terminate()
            stack.router.wait(20)
            stack.start_router()
            yield stack
        finally:
            stack.close()


@pytest.fixture
def held(stack: RouterStack) -> Iterator[RouterStack]:
    """A router whose requests for the coordinator wait."""
    assert stack.admin("hold", {"deadline_s": 600, "drain_s": 0})[0] == 200
    yield stack
    assert stack.admin("resume", {})[0] == 200
    wait_for(lambda: waiting(stack) == 0, 60, "end of the queue")


def waiting(stack: RouterStack) -> int:
    return len(stack.admin("queue")[1]["waiting"])


@pytest.mark.parametrize("target", ["OPTIONS *", "OPTIONS /v1/models", "GET /admin/queue"])
def test_request_without_a_key_is_refused_whatever_it_names(stack: RouterStack, target: str) -> None:
    with Client(stack.port) as client:
        client.send(f"{target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert client.status() == 401


def test_pipelined_request_does_not_hide_that_its_client_has_left(held: RouterStack) -> None:
    with Client(held.port) as client:
        client.send(chat("smollm2") + head("/healthz"))
        wait_for(lambda: waiting(held) == 1, 10, "request in the queue")
    wait_for(lambda: waiting(held) == 0, 10, "end of the request")


def test_key_that_fills_its_part_of_the_queue_leaves_the_rest(held: RouterStack) -> None:
    with ExitStack() as clients:
        for _ in range(30):  # half of the connections but the administrator's
            clients.enter_context(Client(held.port)).send(chat("smollm2"))
        wait_for(lambda: waiting(held) == 30, 10, "requests in the queue")
        with Client(held.port) as one_more:
            one_more.send(chat("smollm2"))
            assert one_more.status() == 429
        other = clients.enter_context(Client(held.port))
        other.send(chat("smollm2", OTHER_KEY))
        wait_for(lambda: waiting(held) == 31, 10, "request of the other key")
        held.admin("resume", {})
        assert other.status() == 200


def test_administrator_is_served_while_users_and_strangers_have_all_connections(held: RouterStack) -> None:
    with ExitStack() as clients:
        for key in (ROUTER_KEY, OTHER_KEY):
            for _ in range(30):
                clients.enter_context(Client(held.port)).send(chat("smollm2", key))
        wait_for(lambda: waiting(held) == 60, 10, "requests in the queue")
        for _ in range(30):
            clients.enter_context(Client(held.port))
        with Client(held.port) as user:
            user.send(head("/v1/models"))
            assert user.status() == 503
        assert held.admin("coordinator")[0] == 200


def test_waiting_bodies_stay_within_their_budget_and_out_of_memory(held: RouterStack) -> None:
    before_mib = resident_mib(held.router.pid)
    message = {"role": "user", "content": "x" * (BODY_BYTES - 200)}
    bodies = [chat("smollm2", key, messages=[message]) for key in (ROUTER_KEY, OTHER_KEY)]
    refused: list[int] = []

    def ask(client: Client, data: bytes) -> None:
        with suppress(OSError):
            client.send(data)
            refused.append(client.status())

    with ThreadPoolExecutor(40) as pool, ExitStack() as clients:
        for number in range(40):
            pool.submit(ask, clients.enter_context(Client(held.port)), bodies[number % 2])
        wait_for(lambda: len(refused) + waiting(held) == 40, 240, "all bodies")
        assert refused == [429] * 6  # each key has half of 1 GiB: 17 of them
        held_bytes = metric(held.call("/metrics")[1], "llama_router_body_bytes")
        assert 33 * BODY_BYTES < held_bytes <= 1024 * MIB
        assert resident_mib(held.router.pid) < before_mib + 150
        assert [path.name for path in held.folder.iterdir() if path.stat().st_size > MIB] == []
    wait_for(
        lambda: metric(held.call("/metrics")[1], "llama_router_body_bytes") == 0, 30, "end of the bodies"
    )
