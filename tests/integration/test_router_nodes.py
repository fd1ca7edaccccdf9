"""A router beside a node that writes what it likes to Redis, and beside a Redis that hangs."""

import http.client
import json
import os
import signal
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.monitor.redis import latest_key
from harness.monitor.sample import RpcSocket
from tests.integration.redis_server import READER, RedisServer, monitor_of
from tests.integration.router_stack import ADMIN_KEY, RouterStack, wait_for
from tests.node_samples import MEMORY as NODE_MEMORY
from tests.node_samples import node_sample

pytestmark = pytest.mark.integration


MEMORY = NODE_MEMORY.model_copy(update={"total_bytes": 4 << 30, "available_bytes": 4 << 30})
IDLE = RpcSocket(listening=True, backlog=0)


def sample(node: str, **figures: Any) -> str:
    """The sample of a node whose backend is idle, with ``figures`` in it."""
    honest = node_sample(time.time_ns(), node, memory=MEMORY, rpc=IDLE)
    return json.dumps(json.loads(honest.model_dump_json()) | figures)


HOSTILE: list[Callable[[], bytes | str]] = [
    lambda: b"\xff",
    lambda: sample("node1", cpu_s=float("nan")),
    lambda: sample("node1", load1=float("inf")),
    lambda: sample("node1", time_ns=time.time_ns() + 3600 * 10**9),
    lambda: sample("node2"),
    lambda: b" " * (1 << 20),
    lambda: b"[" * 100_000,
]


class Monitors:
    """node2 publishes honest samples; node1 what a test gives it."""

    def __init__(self, server: RedisServer) -> None:
        self.node1: Callable[[], bytes | str] = lambda: sample("node1")
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._server.client(monitor_of("node1")) as one, self._server.client(monitor_of("node2")) as two:
            while not self._over.wait(0.2):
                one.set(latest_key("node1"), self.node1(), px=5000)
                two.set(latest_key("node2"), sample("node2"), px=5000)

    def close(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.send(signal.SIGCONT)
    server.kill()


@pytest.fixture
def monitors(server: RedisServer) -> Iterator[Monitors]:
    monitors = Monitors(server)
    yield monitors
    server.send(signal.SIGCONT)
    monitors.close()


@pytest.fixture
def stack(
    llama_build: Path, smollm2: Path, tmp_path: Path, server: RedisServer, monitors: Monitors
) -> Iterator[RouterStack]:
    redis = server.settings(READER).model_dump(mode="json")
    stack = RouterStack(llama_build, smollm2, tmp_path, redis=redis)
    yield stack
    stack.close()


def backends(stack: RouterStack) -> dict[str, dict[str, Any]]:
    """The dashboard's backends by node, from one of its events."""
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)
    form = {"content-type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/dashboard/login", urllib.parse.urlencode({"key": ADMIN_KEY}), form)
    answer = connection.getresponse()
    cookie = (answer.getheader("set-cookie") or "").partition(";")[0]
    answer.read()
    connection.request("GET", "/dashboard/events", headers={"cookie": cookie})
    line = connection.getresponse().readline().decode()
    connection.close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON for a browser")

    snapshot = json.loads(line.removeprefix("data: "), parse_constant=refuse)
    return {row["node"]: row for row in snapshot["backends"]}


def test_node_that_writes_what_it_likes_harms_itself_alone(stack: RouterStack, monitors: Monitors) -> None:
    for hostile in HOSTILE:
        monitors.node1 = hostile
        refused = lambda: backends(stack)["node1"]["reason"].startswith("sample refused: ")  # noqa: E731
        wait_for(refused, 10, "the refusal")
        seen = backends(stack)
        assert (seen["node1"]["state"], seen["node1"]["memory"]) == ("silent", None)
        assert seen["node2"]["memory"] is not None
        ask = {"model": "smollm2", "prompt": "One two", "max_tokens": 1}
        assert stack.call("/v1/completions", ask)[0] == 200
        monitors.node1 = lambda: sample("node1")
        wait_for(lambda: backends(stack)["node1"]["memory"] is not None, 10, "its return")
    page = stack.call("/metrics")[1]
    assert 'llama_router_samples_refused_total{node="node2"} 0.0' in page
    assert 'llama_router_samples_refused_total{node="node1"} 0.0' not in page


def test_backend_killed_while_its_node_writes_what_it_likes_is_diagnosed(
    stack: RouterStack, monitors: Monitors
) -> None:
    ask = {"model": "smollm2", "prompt": "One two", "max_tokens": 1}
    assert stack.call("/v1/completions", ask)[0] == 200
    monitors.node1 = lambda: b"\xff"
    wait_for(lambda: backends(stack)["node1"]["state"] == "silent", 10, "the refusal")
    before = stack.admin("coordinator")[1]["start_id"]
    os.kill(stack.admin("coordinator")[1]["pid"], signal.SIGKILL)
    assert stack.call("/v1/completions", ask)[0] == 200, "loaded again"
    (lost,) = [start for start in stack.admin("starts")[1] if start["start_id"] == before]
    assert lost["diagnosis"]["class"] in {"stopped", "killed"}


def test_requests_are_served_while_redis_hangs(stack: RouterStack, server: RedisServer) -> None:
    ask = {"model": "smollm2", "prompt": "One two", "max_tokens": 1}
    assert stack.call("/v1/completions", ask)[0] == 200
    server.send(signal.SIGSTOP)
    for _ in range(20):
        assert stack.call("/v1/completions", ask)[0] == 200
    wait_for(lambda: "silent" in backends(stack)["node2"]["state"], 20, "samples that are too old")
    server.send(signal.SIGCONT)
    wait_for(lambda: backends(stack)["node2"]["memory"] is not None, 20, "its samples again")
