"""Why a coordinator ended, from its exit and from what the nodes' samples show."""

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from harness.contracts.diagnosis import Confidence, FailureClass
from harness.monitor.sample import Kernel, Process, Sample
from harness.router.config import Backend, RouterConfig
from harness.router.coordinator.instance import CoordinatorInstance
from harness.router.coordinator.post_mortem import PostMortem, diagnose_load
from harness.router.nodes.samples import NodeSamples
from tests.node_samples import MEMORY, node_sample
from tests.unit.router.coordinator.fakes import ENDPOINT, bench

HEAD, NODE = "head", "node1"
FUTURE_NS = 3600 * 10**9
"""A double of a monitor publishes from the future, so that nothing has to wait for its next sample."""


class Nodes:
    """The double of Redis: samples by node, made when they are asked for."""

    def __init__(self, **samples: Callable[[], Sample]) -> None:
        self.samples = samples

    async def latest(self, nodes: list[str], *, now: bool = False) -> dict[str, Sample]:
        return {node: self.samples[node]() for node in nodes if node in self.samples}


def post_mortem(monkeypatch: pytest.MonkeyPatch, nodes: Nodes) -> PostMortem:
    monkeypatch.setattr("harness.router.coordinator.post_mortem._KMSG", Path("/nowhere"))
    config = RouterConfig(
        address="10.0.0.9",
        backends=[
            Backend(node=HEAD, endpoint="10.0.0.9:50052", memory_bytes=1),
            Backend(node=NODE, endpoint=ENDPOINT, memory_bytes=1),
        ],
    )
    return PostMortem(config, cast(NodeSamples, nodes))


async def dead(folder: Path, number: int, log: str = "") -> CoordinatorInstance:
    """An instance whose process a signal ended, with the last lines of its log."""
    at = bench(folder)
    instance = await at.loaded()
    with instance.log_path.open("a") as file:
        file.write(log)
    at.engine.process.die(number)
    await instance.ended.wait()
    instance.state.diagnosis = None
    instance.state.exit = at.engine.process.exit
    at.manager.begin_shutdown()
    await at.manager.close()
    assert instance.process is not None
    instance.process = replace_signals(instance)
    instance.state.signals = []
    return instance


def replace_signals(instance: CoordinatorInstance) -> Any:
    process = cast(Any, instance.process)
    process.signals = []
    return process


def sample(node: str, **figures: Any) -> Callable[[], Sample]:
    return lambda: node_sample(time.time_ns() + FUTURE_NS, node, **figures)


async def test_kill_that_the_kernels_log_names_is_an_oom_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "Out of memory: Killed process 7 (llama-server) total-vm:1kB, anon-rss:1kB"
    kernel = Kernel(log=True, last_oom=line, last_oom_ns=time.time_ns() + FUTURE_NS)
    instance = await dead(tmp_path, signal.SIGKILL)
    diagnosis = await post_mortem(monkeypatch, Nodes(head=sample(HEAD, kernel=kernel))).diagnose(instance)
    assert (diagnosis.failure_class, diagnosis.confidence) == (FailureClass.OOM_KILLED, Confidence.CERTAIN)
    assert any(line in evidence.line for evidence in diagnosis.evidence)


async def test_kill_of_another_process_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "Out of memory: Killed process 7 (firefox) total-vm:1kB, anon-rss:1kB"
    kernel = Kernel(log=True, last_oom=line, last_oom_ns=time.time_ns() + FUTURE_NS)
    instance = await dead(tmp_path, signal.SIGKILL)
    diagnosis = await post_mortem(monkeypatch, Nodes(head=sample(HEAD, kernel=kernel))).diagnose(instance)
    assert diagnosis.failure_class is not FailureClass.OOM_KILLED


@pytest.mark.parametrize(("kills", "oom"), [(3, True), (2, False)])
async def test_kill_while_the_node_counts_an_oom_kill_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int, oom: bool
) -> None:
    nodes = Nodes(head=sample(HEAD, memory=MEMORY.model_copy(update={"oom_kills": 2})))
    judge = post_mortem(monkeypatch, nodes)
    instance = await dead(tmp_path, signal.SIGKILL)
    await judge.note_start(instance)
    nodes.samples[HEAD] = sample(HEAD, memory=MEMORY.model_copy(update={"oom_kills": kills}))
    diagnosis = await judge.diagnose(instance)
    assert (diagnosis.failure_class is FailureClass.OOM_KILLED) == oom


async def test_broken_receive_with_a_backend_that_was_restarted_is_a_lost_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Process(
        pid=9, name="rpc-server", rss_bytes=1, swap_bytes=0, cpu_s=1, started_ns=time.time_ns() + FUTURE_NS
    )
    broken = f"recv failed (bytes_recv=0, size_to_recv=8)\nRemote RPC server crashed [{ENDPOINT}]\n"
    instance = await dead(tmp_path, signal.SIGABRT, broken)
    nodes = Nodes(node1=sample(NODE, processes=[server]), head=sample(HEAD))
    diagnosis = await post_mortem(monkeypatch, nodes).diagnose(instance)
    assert diagnosis.failure_class is FailureClass.BACKEND_LOST


async def test_silent_nodes_are_not_waited_for_beyond_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.router.coordinator.post_mortem._SAMPLE_WAIT_S", 0.01)
    monkeypatch.setattr("harness.router.coordinator.post_mortem._SAMPLE_POLL_S", 0.001)
    instance = await dead(tmp_path, signal.SIGKILL)
    old = Nodes(head=lambda: node_sample(1, HEAD))
    diagnosis = await asyncio.wait_for(post_mortem(monkeypatch, old).diagnose(instance), 5)
    assert diagnosis.failure_class is not FailureClass.OOM_KILLED


async def test_failures_that_the_router_decides_have_a_way_out(tmp_path: Path) -> None:
    at = bench(tmp_path)
    instance = await at.loaded()
    for failure in (FailureClass.HUNG, FailureClass.PORT_IN_USE, FailureClass.BAD_ARGUMENTS):
        diagnosis = diagnose_load(instance, failure, "what was seen")
        assert diagnosis is not None
        assert (diagnosis.evidence[0].line, bool(diagnosis.advice)) == ("what was seen", True)
    assert diagnose_load(instance, FailureClass.UNKNOWN, "it ended") is None
    await at.manager.close()
