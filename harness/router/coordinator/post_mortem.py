"""Why a coordinator ended: exit status, signals and log, and what the nodes saw that the router cannot.

A request is blamed if llama-server crashed by itself while every backend of its plan lived on. The nodes'
samples are read for that, for OOM kills, and for restarted backends.
"""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.diagnosis.classify import classify
from harness.diagnosis.exit_status import KILL
from harness.diagnosis.inputs import NodeEvidence, coordinator_inputs
from harness.monitor.backend_state import RPC_UNIT
from harness.monitor.readers.kernel_log import KernelLog
from harness.monitor.sample import RPC_SERVERS, Sample
from harness.router.config import RouterConfig
from harness.router.coordinator.instance import DISK_FULL_ADVICE, CoordinatorInstance
from harness.router.failures import CRASH_SIGNALS, Failures, describe
from harness.router.in_flight import SentRequest, digests
from harness.router.nodes.samples import NodeSamples

_HEAD = "head"
"""The node that the coordinator runs on, where the configuration has no name for it."""
_KMSG = Path("/dev/kmsg")
_KMSG_READS = 10
"""Of the kernel's log, 5,000 records each: more than its ring holds."""
_SAMPLE_WAIT_S = 2.5
"""Monitors publish once a second: what has happened is in their samples by then."""
_SAMPLE_POLL_S = 0.1
_SENT_BEFORE_S = 1.0
"""The request that hangs a server may have been sent this long before the server's last sign of life."""
_TAIL_BYTES = 64 * 1024
_BROKEN_RECEIVE = b"recv failed ("
_BY_OTHERS = frozenset(
    {
        FailureClass.BACKEND_LOST,
        FailureClass.BACKEND_UNREACHABLE,
        FailureClass.BACKEND_STALLED,
        FailureClass.BUILD_MISMATCH,
        FailureClass.NETWORK_PARTITION,
        FailureClass.OOM_KILLED,
        FailureClass.RPC_VERSION_MISMATCH,
        FailureClass.STOPPED,
        FailureClass.STOPPED_BUSY,
    }
)
"""Causes outside llama-server: no request is blamed for an end by one of them."""
_POISON_ADVICE = (
    "The request is refused for a while. Find it by its id in the router's log and change it; "
    "report it to llama.cpp with the end of this log."
)
_SUSPECTS_ADVICE = (
    "Each of them may be the cause, and none is refused yet. From now on they are sent one after the other: "
    "the one that ends a server again is refused."
)


class PostMortem:
    """Diagnoses ends, with the nodes' samples, and with the kernel's log where it may be read.

    A deployed router may not read that log: the head node's monitor does, and its samples have the line.
    """

    def __init__(self, config: RouterConfig, nodes: NodeSamples, failures: Failures) -> None:
        self._head = config.head_node
        self._nodes = nodes
        self._kernel = KernelLog(_KMSG) if os.access(_KMSG, os.R_OK) else None
        self._failures = failures
        self._suspect_s = config.suspect_s
        self._before: tuple[str, dict[str, Sample]] = "", {}

    async def note_start(self, instance: CoordinatorInstance) -> None:
        """Remember what the nodes showed when this instance was started: OOM kills and backends."""
        nodes = {share.node for share in instance.plan.shares} | ({self._head} if self._head else set())
        self._before = instance.id, await self._nodes.latest(sorted(nodes))

    async def diagnose(self, instance: CoordinatorInstance) -> Diagnosis:
        """Why an instance ended; waits for the monitors' next samples where only they can show it.

        A request that caused it is blamed: the instance then has it as ``poison``.
        """
        evidence = await self._evidence(instance)
        inputs = coordinator_inputs(instance.state, self._head or _HEAD, instance.log_path, evidence)
        diagnosis = await asyncio.to_thread(classify, inputs)
        exit_status = instance.exit
        if exit_status is None or not crashed_by_itself(instance, diagnosis):
            return diagnosis
        sent = instance.sent.at(exit_status.time_ns)
        if not sent or await self._backend_changed(instance, exit_status.time_ns):
            return diagnosis
        return self._blame(instance, sent, sent, diagnosis, ", and every backend lived on")

    def diagnose_hang(self, instance: CoordinatorInstance, diagnosis: Diagnosis) -> Diagnosis:
        """The diagnosis of an instance that makes no progress; blames the request whose main thread spins.

        It was sent about when the server showed its last sign of life. Those that were sent later than it may
        be without one wait behind it.
        """
        if diagnosis.failure_class is not FailureClass.HUNG:
            return diagnosis
        still_s, now_ns = instance.unproven_s, time.time_ns()
        sent = instance.sent.at(now_ns, left_within_s=still_s + _SAMPLE_WAIT_S)
        last_ns = now_ns - still_s * 1e9
        early = [r for r in sent if r.sent_ns < last_ns - _SENT_BEFORE_S * 1e9]
        near = [r for r in sent[len(early) :] if r.sent_ns < last_ns + self._suspect_s * 1e9]
        in_flight = [*early, *near] or sent[:1]
        return self._blame(instance, near or in_flight, in_flight, diagnosis, "") if in_flight else diagnosis

    def _blame(
        self,
        instance: CoordinatorInstance,
        suspects: Sequence[SentRequest],
        in_flight: Sequence[SentRequest],
        diagnosis: Diagnosis,
        backends: str,
    ) -> Diagnosis:
        poison = self._failures.culprit(suspects, in_flight)
        line = f"{describe(poison, suspects, in_flight)}{backends}"
        blamed = Diagnosis(
            failure_class=FailureClass.POISON_REQUEST,
            evidence=[Evidence(source="router", line=line), *diagnosis.evidence],
            confidence=Confidence.CERTAIN if digests(in_flight) == 1 else Confidence.LIKELY,
            ruled_out=[f"{diagnosis.failure_class}: {diagnosis.advice}", *diagnosis.ruled_out],
            advice=_POISON_ADVICE if poison else _SUSPECTS_ADVICE,
        )
        instance.by_request, instance.poison = True, poison
        if poison:
            self._failures.blame(poison, line, in_flight, diagnosis=blamed, start_id=instance.id)
        else:
            self._failures.note_suspects(suspects, line, diagnosis=blamed, start_id=instance.id)
        return blamed

    async def _backend_changed(self, instance: CoordinatorInstance, time_ns: int) -> bool:
        """Whether a planned backend, whose node sent samples before, is gone or has been started again."""
        start, before = self._before
        nodes = [share.node for share in instance.plan.shares if share.layers and share.node in before]
        if start != instance.id or not nodes:
            return False  # then the log alone shows a lost backend
        after = await self._after(time_ns, nodes)
        return any(node not in after or _server(before[node]) != _server(after[node]) for node in nodes)

    async def _evidence(self, instance: CoordinatorInstance) -> dict[str, NodeEvidence]:
        process = instance.process
        if process is None or process.exit is None or process.signals:
            return {}
        if process.exit.signal == KILL:
            line = await asyncio.to_thread(self._oom_line, process.pid)
            samples = {} if line or not self._head else await self._after(process.exit.time_ns, [self._head])
            return {self._head or _HEAD: self._killed(instance, line, samples.get(self._head or ""))}
        if await asyncio.to_thread(_receive_broke, instance.log_path):
            nodes = [share.node for share in instance.plan.shares]
            return _rpc_evidence(await self._after(process.exit.time_ns, nodes))
        return {}

    def _killed(self, instance: CoordinatorInstance, line: str | None, sample: Sample | None) -> NodeEvidence:
        kernel = sample.kernel if sample else None
        since_ns = instance.timings.exec_ns or 0
        if line is None and kernel and kernel.last_oom and (kernel.last_oom_ns or 0) > since_ns:
            # On a lab node the kernel's line has the host's process id: the name has to do.
            name = Path(instance.state.argv[0]).name[:15]
            line = kernel.last_oom if f"({name})" in kernel.last_oom else None
        start, samples = self._before
        before = _kills(samples.get(self._head or "")) if start == instance.id else None
        after = _kills(sample)
        kills = after - before if before is not None and after is not None else None
        if kills is None and line is None and self._kernel is not None:
            kills = 0  # the kernel's whole log was read, and it does not name the process
        return NodeEvidence(journal=[line] if line else [], oom_kills=kills)

    def _oom_line(self, pid: int) -> str | None:
        if self._kernel is None:
            return None
        line = None
        for _ in range(_KMSG_READS):
            line = self._kernel.read(None).last_oom
        return line if line and f"Killed process {pid} (" in line else None

    async def _after(self, time_ns: int, nodes: Sequence[str]) -> dict[str, Sample]:
        """The nodes' samples that are newer than ``time_ns``, by the head node's clock."""
        deadline = time.monotonic() + _SAMPLE_WAIT_S
        while True:
            samples = await self._nodes.latest(list(nodes), now=True)
            newer = {node: sample for node, sample in samples.items() if sample.head_time_ns > time_ns}
            if len(newer) == len(set(nodes)) or not samples or time.monotonic() > deadline:
                return newer
            await asyncio.sleep(_SAMPLE_POLL_S)


def crashed_by_itself(instance: CoordinatorInstance, diagnosis: Diagnosis) -> bool:
    """Whether a ready llama-server crashed by itself, by its exit status, its log and our signals."""
    return (
        instance.ready_s is not None
        and instance.exit is not None
        and instance.exit.signal in CRASH_SIGNALS
        and not instance.state.signals
        and diagnosis.failure_class not in _BY_OTHERS
    )


def _server(sample: Sample) -> tuple[object, ...]:
    """Identifies one run of a node's rpc-server."""
    unit = sample.units.get(RPC_UNIT)
    if unit:
        return unit.active, unit.main_pid, unit.restarts
    return tuple(process.pid for process in sample.processes if process.name in RPC_SERVERS)


def _kills(sample: Sample | None) -> int | None:
    return sample.memory.oom_kills if sample else None


def _rpc_evidence(samples: Mapping[str, Sample]) -> dict[str, NodeEvidence]:
    evidence = {}
    for node, sample in samples.items():
        unit = sample.units.get(RPC_UNIT)
        servers = [p for p in sample.processes if (p.pid == unit.main_pid if unit else p.name in RPC_SERVERS)]
        if starts := [server.started_ns for server in servers if server.started_ns]:
            evidence[node] = NodeEvidence(rpc_started_ns=max(starts))
    return evidence


def _receive_broke(log: Path) -> bool:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return _BROKEN_RECEIVE in file.read()
    except OSError:
        return False


_DECIDED_HERE = {
    FailureClass.HUNG: "Look at the log's last line and at the backends' own state; "
    "give the load a longer deadline if it was still moving.",
    FailureClass.PORT_IN_USE: "Find who listens there with 'ss -Hltnp' and stop it, "
    "or set another coordinator_port.",
    FailureClass.BACKEND_UNREACHABLE: "Restart llama-rpc-server on the node that the line names, "
    "then load again.",
    FailureClass.DISK_FULL: DISK_FULL_ADVICE,
    FailureClass.BAD_ARGUMENTS: "Check that llama.cpp is installed under /opt/llama.cpp/current "
    "and that the router's user may write the log folder.",
}
"""Failures of a load that the router itself decides, and what to do about each."""


def diagnose_load(instance: CoordinatorInstance, failure: FailureClass, message: str) -> Diagnosis | None:
    """The diagnosis of a load that failed; None where the child's end will tell."""
    if failure in _DECIDED_HERE:
        return Diagnosis(
            failure_class=failure,
            evidence=[Evidence(source="router", line=message)],
            confidence=Confidence.CERTAIN,
            advice=_DECIDED_HERE[failure],
        )
    if failure is FailureClass.NOT_DISTRIBUTED:
        return classify(coordinator_inputs(instance.state, _HEAD, instance.log_path, {}, running=True))
    return None
