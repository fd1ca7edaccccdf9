"""Ends of a coordinator that only its nodes can explain: somebody stopped or killed it, or a backend died."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from harness.monitor.readers.llama_cpp import ProcessTable
from harness.monitor.redis import connection_options, latest_key
from harness.monitor.sample import Kernel, Memory, RpcSocket, Sample, Source
from tests.integration.redis_server import READER, RedisServer, monitor_of
from tests.integration.router_stack import RouterStack, wait_for

pytestmark = pytest.mark.integration


class MonitorsDouble:
    """What two nodes' monitors would publish, each of its own rpc-server: here both are on one machine."""

    def __init__(self, server: RedisServer, stack: RouterStack) -> None:
        self._clients = {
            node: redis.Redis(**connection_options(server.settings(monitor_of(node))))
            for node in ("node1", "node2")
        }
        self._stack = stack
        self._over = threading.Event()
        self.peers: dict[str, str] = {}
        """By node, whom its rpc-server serves."""
        self.oom_line: str | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        table = ProcessTable()
        while not self._over.wait(0.2):
            every = {process.pid: process for process in table.read()}
            for number, backend in enumerate(self._stack.backends, 1):
                own = [every[backend.process.pid]] if backend.process.pid in every else []
                memory = Memory(
                    source=Source.PROC,
                    total_bytes=4 << 30,
                    available_bytes=4 << 30,
                    used_bytes=0,
                    cache_bytes=0,
                    swap_total_bytes=0,
                    swap_used_bytes=0,
                    major_faults=0,
                    oom_kills=7,
                )
                node = f"node{number}"
                sample = Sample(
                    time_ns=time.time_ns(),
                    node=node,
                    memory=memory,
                    cpu_s=1,
                    processes=own,
                    kernel=Kernel(log=True, last_oom=self.oom_line, last_oom_ns=time.time_ns()),
                    rpc=RpcSocket(listening=bool(own), backlog=0, peer=self.peers.get(node)),
                )
                self._clients[node].set(latest_key(node), sample.model_dump_json(), px=5000)

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        for client in self._clients.values():
            client.close()


@pytest.fixture
def watched(llama_build: Path, smollm2: Path, tmp_path: Path) -> Iterator[tuple[RouterStack, MonitorsDouble]]:
    server = RedisServer(tmp_path)
    server.start()
    made = RouterStack(llama_build, smollm2, tmp_path, redis=server.settings(READER).model_dump(mode="json"))
    monitors = MonitorsDouble(server, made)
    idle = 'llama_router_backend_state{node="node1",state="idle"} 1.0'
    wait_for(lambda: idle in made.call("/metrics")[1], 10, "the nodes' samples")
    yield made, monitors
    monitors.close()
    made.close()
    server.kill()


@pytest.fixture
def stack(watched: tuple[RouterStack, MonitorsDouble]) -> RouterStack:
    return watched[0]


def end_of_a_busy_coordinator(stack: RouterStack, end: Callable[[int], None]) -> dict[str, Any]:
    """Its diagnosis, once it has been ended in the middle of an answer that the client gets all the same."""
    ask = {"model": "smollm2", "prompt": "One two", "max_tokens": 150, "ignore_eos": True}
    assert stack.call("/v1/completions", ask | {"max_tokens": 1})[0] == 200
    _, before = stack.admin("coordinator")
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(stack.call, "/v1/completions", ask)
        wait_for(lambda: stack.admin("coordinator")[1]["requests_in_flight"] == 1, 20, "request in flight")
        time.sleep(0.3)
        end(before["pid"])
        assert asked.result()[0] == 200
    (lost,) = [start for start in stack.admin("starts")[1] if start["start_id"] == before["start_id"]]
    # A build that was told to stop and then hangs has to be killed.
    assert [sent["reason"] for sent in lost["signals"] if "broke off a request" not in sent["reason"]] == []
    return dict(lost["diagnosis"])


def test_coordinator_that_somebody_stops_was_stopped_and_lost_no_backend(stack: RouterStack) -> None:
    found = end_of_a_busy_coordinator(stack, lambda pid: os.kill(pid, signal.SIGTERM))
    assert found["class"] == "stopped_busy", found
    assert "Somebody other than the harness" in found["advice"]


def test_coordinator_that_somebody_kills_was_stopped(stack: RouterStack) -> None:
    found = end_of_a_busy_coordinator(stack, lambda pid: os.kill(pid, signal.SIGKILL))
    assert found["class"] == "stopped", found
    assert found["evidence"][0]["line"] == "no OOM kill on node1 while it ran"


def test_kernels_line_in_the_head_nodes_samples_makes_a_kill_an_oom_kill(
    watched: tuple[RouterStack, MonitorsDouble],
) -> None:
    stack, monitors = watched
    line = "Memory cgroup out of memory: Killed process 4711 (llama-server) total-vm:9kB"

    def kill(pid: int) -> None:
        monitors.oom_line = line
        os.kill(pid, signal.SIGKILL)

    found = end_of_a_busy_coordinator(stack, kill)
    assert (found["class"], found["confidence"]) == ("oom_killed", "certain")
    assert found["evidence"][0] == {"source": "journal node1", "line": line}


def test_backend_that_is_killed_is_still_a_lost_backend(stack: RouterStack) -> None:
    def kill(pid: int) -> None:
        stack.backends[1].kill()
        stack.backends[1].start()

    assert end_of_a_busy_coordinator(stack, kill)["class"] == "backend_lost"


def test_backend_that_serves_a_connection_which_nobody_has_is_named_before_a_load_waits_for_it(
    watched: tuple[RouterStack, MonitorsDouble],
) -> None:
    stack, monitors = watched
    monitors.peers["node2"] = "127.0.0.1:1"
    state = 'llama_router_backend_state{node="node2",state="busy"} 1.0'
    wait_for(lambda: state in stack.call("/metrics")[1], 10, "the sample that says so")
    status, refused = stack.admin("load", {"model": "smollm2"})
    assert (status, refused["error"]["class"]) == (503, "backend_unreachable")
    assert "node2: its rpc-server still serves 127.0.0.1:1, a connection that" in refused["error"]["message"]
    assert "systemctl restart llama-rpc-server" in refused["error"]["message"]
    assert stack.admin("starts")[1] == [], "nothing was started for it"
    ask = {"model": "smollm2", "prompt": "One two", "max_tokens": 1}
    assert stack.call("/v1/completions", ask)[0] == 200
    shares = stack.admin("coordinator")[1]["plan"]["shares"]
    assert [share["node"] for share in shares] == ["node1"], "a request is served without it"


def test_backend_that_a_coordinator_has_just_left_is_not_taken_for_forgotten(
    watched: tuple[RouterStack, MonitorsDouble],
) -> None:
    stack, monitors = watched
    monitors.peers["node2"] = "127.0.0.1:1"
    state = 'llama_router_backend_state{node="node2",state="busy"} 1.0'
    wait_for(lambda: state in stack.call("/metrics")[1], 10, "the sample that says so")
    with ThreadPoolExecutor(1) as threads:
        loading = threads.submit(stack.admin, "load", {"model": "smollm2"})
        monitors.peers.clear()
        assert loading.result()[0] == 200


def test_load_that_waits_behind_such_a_backend_is_given_up_once_its_node_says_so(
    watched: tuple[RouterStack, MonitorsDouble],
) -> None:
    stack, monitors = watched
    stack.backends[1].signal(signal.SIGSTOP)  # as one that serves somebody else: it takes no other client
    try:
        with ThreadPoolExecutor(1) as threads:
            loading = threads.submit(stack.admin, "load", {"model": "smollm2"})
            wait_for(lambda: stack.admin("coordinator")[1]["phase"] == "starting", 20, "a load that hangs")
            monitors.peers["node2"] = "127.0.0.1:1"
            status, refused = loading.result()
    finally:
        stack.backends[1].signal(signal.SIGCONT)
    assert (status, refused["error"]["class"]) == (503, "backend_unreachable")
    assert "node2: its rpc-server still serves 127.0.0.1:1" in refused["error"]["message"]
    assert stack.admin("coordinator")[1]["diagnosis"]["class"] == "backend_unreachable"
