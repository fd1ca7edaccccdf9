"""The live view over a real Redis and real monitors; only SSH is left out: nodes run their commands here."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.cluster.inventory import Inventory, Node
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.errors import HarnessError
from harness.watch.sources import Sources, _EndedError, _follow_lines
from harness.watch.view import ClusterView, NodeView
from tests.integration.redis_server import READER, RedisServer, monitor_of

pytestmark = pytest.mark.integration

MONITOR = (sys.executable, "-m", "harness.monitor")


class NodeHere(Node):
    """A node reached without SSH: ``llama-node-monitor`` runs on this machine, with the node's files."""

    def ssh(self, *argv: str, root: bool = False) -> list[str]:
        config = "reader.json" if argv[1] == "latest" else f"{self.name}.json"
        return [*MONITOR, *argv[1:], "--config", str(Path(self.variables["folder"]) / config)]


class Cluster:
    """Two nodes with monitors, one Redis, and a socket where node1's rpc-server would listen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.redis = RedisServer(folder)
        self.backend = socket.create_server(("127.0.0.1", 0))
        self.monitors: dict[str, subprocess.Popen[bytes]] = {}
        groups = {"node1": {"backends", "head"}, "node2": {"pool"}}
        nodes = {
            name: NodeHere(name, "127.0.0.1", frozenset(of), {"folder": folder})
            for name, of in groups.items()
        }
        self.inventory = Inventory(folder, dict(nodes))
        (folder / "reader.json").write_text(self.redis.settings(READER).model_dump_json())

    def start_monitor(self, name: str) -> None:
        values = {
            "node": name,
            "address": "127.0.0.1",
            "ring": str(self.folder / name),
            "cgroup": "none",
            "cgroup_cpu": "none",
            "rpc_port": self.backend.getsockname()[1] if name == "node1" else None,
            "redis": self.redis.settings(monitor_of(name)).model_dump(mode="json"),
        }
        config = self.folder / f"{name}.json"
        config.write_text(json.dumps(values))
        self.monitors[name] = subprocess.Popen([*MONITOR, "run", "--config", str(config)])

    def end(self) -> None:
        for monitor in self.monitors.values():
            monitor.kill()
            monitor.wait()
        self.redis.kill()
        self.backend.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    cluster.redis.start()
    for name in cluster.inventory.nodes:
        cluster.start_monitor(name)
    yield cluster
    cluster.end()


async def no_router() -> CoordinatorState:
    raise HarnessError("no router here")


async def wait_for(sources: Sources, what: str, true: Callable[[ClusterView], bool]) -> ClusterView:
    for _ in range(400):
        if true(view := sources.view()):
            return view
        await asyncio.sleep(0.1)
    raise AssertionError(f"never seen: {what}; last: {sources.view().model_dump_json(indent=1)}")


def node(view: ClusterView, name: str) -> NodeView:
    return next(row for row in view.nodes if row.name == name)


async def test_view_is_whole_without_the_router(cluster: Cluster) -> None:
    async with Sources(cluster.inventory, no_router) as sources:
        view = await wait_for(sources, "both nodes", lambda v: [n.state for n in v.nodes] == ["idle", "up"])
        assert view.source == "redis"
        assert view.router.problem == "no router here"


async def test_busy_backend_is_shown_as_busy_and_is_never_connected_to(cluster: Cluster) -> None:
    client = socket.create_connection(cluster.backend.getsockname())
    served, _ = cluster.backend.accept()
    async with Sources(cluster.inventory, no_router) as sources:
        view = await wait_for(sources, "busy", lambda v: node(v, "node1").state == "busy")
        assert f"127.0.0.1:{client.getsockname()[1]}" in node(view, "node1").reason
    cluster.backend.settimeout(0)
    with pytest.raises(BlockingIOError):
        cluster.backend.accept()
    client.close()
    served.close()


async def test_command_ends_though_another_process_keeps_its_stderr() -> None:
    """As ssh's master process does."""
    script = "sleep 300 > /dev/null & echo $!; echo the reason >&2; exit 3"
    lines = _follow_lines(["sh", "-c", script], 60)
    holder = int(await anext(lines))
    try:
        async with asyncio.timeout(60):
            with pytest.raises(_EndedError, match="the reason"):
                await anext(lines)
    finally:
        os.kill(holder, signal.SIGKILL)


async def test_command_that_writes_many_errors_is_not_held_up_by_them() -> None:
    """More than a pipe takes; the last of them is its reason."""
    script = "head -c 200000 /dev/zero >&2; echo a line; echo >&2; echo the reason >&2; exit 3"
    lines = _follow_lines(["sh", "-c", script], 60)
    assert await anext(lines) == "a line\n"
    with pytest.raises(_EndedError, match=r"^the reason$"):
        await anext(lines)


async def test_silent_node_is_shown_as_silent_with_its_age(cluster: Cluster) -> None:
    async with Sources(cluster.inventory, no_router) as sources:
        await wait_for(sources, "node2", lambda v: node(v, "node2").state == "up")
        cluster.monitors["node2"].kill()
        view = await wait_for(sources, "silence", lambda v: node(v, "node2").state == "silent")
        assert node(view, "node1").state == "idle"
        assert node(view, "node2").memory_total_bytes
        assert (node(view, "node2").age_s or 0) >= 5
        cluster.start_monitor("node2")
        await wait_for(sources, "its return", lambda v: node(v, "node2").state == "up")


async def test_rings_are_read_while_redis_is_away(cluster: Cluster) -> None:
    async with Sources(cluster.inventory, no_router) as sources:
        await wait_for(sources, "Redis", lambda v: v.source == "redis")
        cluster.redis.kill()
        view = await wait_for(
            sources,
            "rings",
            lambda v: v.source == "rings" and all(n.age_s is not None and n.age_s < 2 for n in v.nodes),
        )
        assert [row.state for row in view.nodes] == ["idle", "up"]
        assert "Redis at 127.0.0.1" in (view.source_problem or "")
        cluster.redis.start()
        await wait_for(sources, "Redis again", lambda v: v.source == "redis" and v.source_problem is None)


async def test_coordinator_is_shown_as_the_router_reports_it(cluster: Cluster) -> None:
    async def ready() -> CoordinatorState:
        return CoordinatorState(phase=CoordinatorPhase.READY, model="70b", requests_in_flight=2)

    async with Sources(cluster.inventory, ready) as sources:
        await sources.first_snapshot()
        router = sources.view().router
    assert (router.phase, router.model, router.requests_in_flight) == (CoordinatorPhase.READY, "70b", 2)
