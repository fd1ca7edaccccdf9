"""Why a coordinator ended, from its exit and from what the nodes' samples show."""

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from harness.contracts.diagnosis import Confidence, Diagnosis, FailureClass
from harness.monitor.sample import Kernel, Process, Sample
from harness.router.config import Backend, RouterConfig
from harness.router.coordinator.instance import CoordinatorInstance
from harness.router.coordinator.liveness import spins
from harness.router.coordinator.post_mortem import PostMortem, diagnose_load
from harness.router.failures import Failures
from harness.router.http.metrics import Metrics
from harness.router.in_flight import SentRequest
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
    return PostMortem(config, cast(NodeSamples, nodes), Failures(config, Metrics()))


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


# Requests that are to blame.


def backend(pid: int = 9) -> list[Process]:
    return [Process(pid=pid, name="rpc-server", rss_bytes=1, swap_bytes=0, cpu_s=1)]


def sent(name: str, at_ns: int = 1) -> SentRequest:
    return SentRequest(name, "key", f"digest-{name}", "a", at_ns)


LIVES_ON = sample(NODE, processes=backend())


async def judged(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    *requests: SentRequest,
    log: str = "",
    after: Callable[[], Sample] | None = LIVES_ON,
) -> tuple[CoordinatorInstance, Diagnosis]:
    instance = await dead(folder, number, log)
    nodes = Nodes(node1=LIVES_ON)
    judge = post_mortem(monkeypatch, nodes)
    await judge.note_start(instance)
    nodes.samples = {NODE: after} if after else {}
    for request in requests:
        instance.sent.add(request)
    return instance, await judge.diagnose(instance)


CRASHES = [signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGBUS]


@pytest.mark.parametrize("number", CRASHES)
async def test_request_is_blamed_for_a_crash_while_the_backends_live_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    request = sent("only")
    instance, diagnosis = await judged(tmp_path, monkeypatch, number, request)
    assert instance.poison is request
    assert (diagnosis.failure_class, diagnosis.confidence) == (
        FailureClass.POISON_REQUEST, Confidence.CERTAIN,
    )  # fmt: skip
    assert diagnosis.evidence[0].line == (
        "request only of key key (digest digest-only) was the only one in flight, and every backend lived on"
    )


async def test_none_of_several_requests_is_blamed_and_each_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = sent("older", 1), sent("newer", 2)
    instance, diagnosis = await judged(tmp_path, monkeypatch, signal.SIGSEGV, newer, older)
    assert (instance.poison, instance.by_request) == (None, True)
    assert (diagnosis.failure_class, diagnosis.confidence) == (
        FailureClass.POISON_REQUEST, Confidence.LIKELY,
    )  # fmt: skip
    assert diagnosis.evidence[0].line == (
        "2 requests were in flight: request older of key key (digest digest-older); "
        "request newer of key key (digest digest-newer), and every backend lived on"
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGPIPE])
async def test_signal_that_others_send_blames_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    instance, diagnosis = await judged(tmp_path, monkeypatch, number, sent("only"))
    assert instance.poison is None
    assert diagnosis.failure_class is not FailureClass.POISON_REQUEST


@pytest.mark.parametrize("after", [sample(NODE, processes=backend(10)), sample(NODE), None])
async def test_backend_that_is_lost_or_no_longer_heard_of_blames_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: Callable[[], Sample] | None
) -> None:
    monkeypatch.setattr("harness.router.coordinator.post_mortem._SAMPLE_WAIT_S", 0.01)
    instance, _ = await judged(tmp_path, monkeypatch, signal.SIGABRT, sent("only"), after=after)
    assert instance.poison is None


async def test_backend_that_the_log_says_is_lost_blames_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = f"Remote RPC server crashed or returned malformed response [{ENDPOINT}]\n"
    instance, diagnosis = await judged(tmp_path, monkeypatch, signal.SIGABRT, sent("only"), log=broken)
    assert (instance.poison, diagnosis.failure_class) == (None, FailureClass.BACKEND_LOST)


async def test_crash_without_a_request_blames_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instance, diagnosis = await judged(tmp_path, monkeypatch, signal.SIGSEGV)
    assert (instance.poison, diagnosis.failure_class) == (None, FailureClass.SEGFAULT)


def spinning(instance: CoordinatorInstance, *requests: SentRequest) -> Diagnosis:
    for request in requests:
        instance.sent.add(request)
    instance.alive_s = time.monotonic() - 60
    return spins(60, 59)


async def test_request_that_came_first_after_the_last_sign_of_life_is_blamed_for_a_spin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns, judge = time.time_ns(), post_mortem(monkeypatch, Nodes())
    instance = await dead(tmp_path, signal.SIGKILL)
    old, poison, queued = (
        sent("old", now_ns - 300 * 10**9), sent("poison", now_ns - 50 * 10**9), sent("queued", now_ns - 10**9)
    )  # fmt: skip
    diagnosis = judge.diagnose_hang(instance, spinning(instance, old, poison, queued))
    assert (instance.poison, diagnosis.failure_class) == (poison, FailureClass.POISON_REQUEST)


async def test_none_of_two_requests_beside_the_last_sign_of_life_is_blamed_for_a_spin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns, judge = time.time_ns(), post_mortem(monkeypatch, Nodes())
    instance = await dead(tmp_path, signal.SIGKILL)
    one, two = sent("one", now_ns - 59 * 10**9), sent("two", now_ns - 50 * 10**9)
    diagnosis = judge.diagnose_hang(instance, spinning(instance, one, two, sent("queued", now_ns - 10**9)))
    assert (instance.poison, instance.by_request) == (None, True)
    assert ("request two" in diagnosis.evidence[0].line, "queued" in diagnosis.evidence[0].line) == (
        True,
        False,
    )


async def test_request_near_the_last_sign_of_life_is_likely_while_earlier_ones_are_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns, judge = time.time_ns(), post_mortem(monkeypatch, Nodes())
    instance = await dead(tmp_path, signal.SIGKILL)
    early = [sent(f"early {number}", now_ns - 90 * 10**9) for number in range(3)]
    near = sent("near", now_ns - 59 * 10**9)
    diagnosis = judge.diagnose_hang(instance, spinning(instance, *early, near))
    assert (instance.poison, diagnosis.confidence) == (near, Confidence.LIKELY)
    assert diagnosis.evidence[0].line == f"{near} was the only one sent near the last sign of life"


async def test_one_request_twice_in_flight_is_certain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, same = sent("one"), replace(sent("one"), request_id="same")
    instance, diagnosis = await judged(tmp_path, monkeypatch, signal.SIGSEGV, one, same)
    assert (instance.poison, diagnosis.confidence) == (same, Confidence.CERTAIN)
    assert "was the only one in flight" in diagnosis.evidence[0].line


async def test_request_that_spins_is_blamed_though_its_client_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, instance = post_mortem(monkeypatch, Nodes()), await dead(tmp_path, signal.SIGKILL)
    poison = sent("poison", time.time_ns() - 50 * 10**9)
    hang = spinning(instance, poison)
    instance.sent.end(poison)
    judge.diagnose_hang(instance, hang)
    assert instance.poison is poison
