"""Conditions that look at the nodes around a coordinator: builds, links, stalled backends, swap thrash."""

import signal
from collections.abc import Mapping, Sequence
from statistics import median

from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.diagnosis.conditions import broke_at_a_backend
from harness.diagnosis.facts import Facts
from harness.diagnosis.inputs import BackendSnapshot, Pressure
from harness.diagnosis.patterns import ends, hardware, rpc
from harness.monitor.backend_state import SILENT_AFTER_S

SWAPPED_BYTES = 128 << 20
FAULTS_PER_S = 100.0
FULL_PERCENT = 20.0
"""PSI, memory full: of the time in which nothing on the node could run because it waited for memory."""
IDLE_CPU_SHARE = 0.02
"""Of one core: what rpc-server uses while it waits for its coordinator."""
MIN_WINDOW_S = 3.0
"""A shorter window says nothing about a process that uses no CPU."""
STOPPED_STATES = ("T", "t")
_SEGFAULTS = (signal.SIGSEGV, signal.SIGBUS)
LESS_SWAP = "Put fewer layers there, or give the node more memory: each token reads layers from swap."


def find_thrash(samples: Mapping[str, Sequence[Pressure]]) -> Diagnosis | None:
    """Whether a backend worked from swap.

    It did where rpc-server had at least 128 MiB in swap and the node took at least 100 major faults a second
    over the window, or every task waited for memory a fifth of the time (PSI, median of the samples). The
    figures of the founding report's thrashing are ten times higher.

    Args:
        samples: by node, in order of time, those of the window.
    """
    evidence = []
    for node, points in samples.items():
        if len(points) < 2:
            continue
        elapsed = (points[-1].time_ns - points[0].time_ns) / 1e9
        rate = (points[-1].major_faults - points[0].major_faults) / elapsed
        swapped = max(point.rpc_swap_bytes for point in points)
        full = [point.memory_full_avg10 for point in points if point.memory_full_avg10 is not None]
        full_share = median(full) if full else 0.0
        if swapped >= SWAPPED_BYTES and (rate >= FAULTS_PER_S or full_share >= FULL_PERCENT):
            line = f"rpc-server had up to {swapped / 2**20:.0f} MiB in swap; {rate:.0f} major faults/s"
            line += f", memory full {full_share:.0f} % of the time" if full else ""
            evidence.append(Evidence(source=f"samples {node}", line=f"{line} over {elapsed:.0f} s"))
    if not evidence:
        return None
    return Diagnosis(
        failure_class=FailureClass.SWAP_THRASH,
        evidence=evidence,
        confidence=Confidence.LIKELY,
        advice=LESS_SWAP,
    )


def thrashes(facts: Facts) -> list[Evidence] | None:
    """It waits or runs, and on a backend's node rpc-server works from swap: at least 128 MiB in swap, and
    100 major faults a second, or every task waited for memory a fifth of the time (PSI)"""
    thrash = find_thrash(facts.inputs.pressure) if facts.inputs.running or facts.inputs.waiting else None
    return thrash.evidence if thrash else None


def node_unreachable(facts: Facts) -> list[Evidence] | None:
    """It waits, or lost a backend, and a backend's node neither answers nor sends samples, or data
    sent between the two is not acknowledged"""
    if not (facts.inputs.waiting or broke_at_a_backend(facts)):
        return None
    return [
        Evidence(source=f"node {node}", line=_silence(backend))
        for node, backend in facts.inputs.backends.items()
        if backend.unacknowledged or not (backend.reachable or _sends_samples(backend))
    ] or None


def _sends_samples(backend: BackendSnapshot) -> bool:
    """Whether its network works, even if a login failed."""
    return backend.silent_s is not None and backend.silent_s < SILENT_AFTER_S


def _silence(backend: BackendSnapshot) -> str:
    if backend.reachable and backend.unacknowledged:
        return backend.unacknowledged
    since = f"; its last sample is {backend.silent_s:.0f} s old" if backend.silent_s is not None else ""
    return f"the node cannot be reached{since}"


def no_route(facts: Facts) -> list[Evidence] | None:
    """It failed or waits; its log, or a node's journal or kernel log, says that packets found no route"""
    if not (facts.failed or facts.inputs.waiting):
        return None
    own = facts.best_line(rpc.NO_ROUTE)
    evidence = [own.evidence] if own else []
    if broke_at_a_backend(facts) or facts.inputs.waiting:
        evidence += [
            Evidence(source=f"journal {node}", line=hit.text)
            for node, matches in facts.journals.items()
            if (hit := matches.first(rpc.NO_ROUTE))
        ]
    return evidence or None


def backend_stopped(facts: Facts) -> list[Evidence] | None:
    """It waits, and a backend's rpc-server is stopped (state T) with its coordinator connected"""
    if not facts.inputs.waiting:
        return None
    return [
        Evidence(
            source=f"process {node}",
            line=f"rpc-server is stopped (state {backend.state}), peer {backend.peer}",
        )
        for node, backend in facts.inputs.backends.items()
        if backend.reachable and backend.peer and backend.state in STOPPED_STATES
    ] or None


def all_backends_idle(facts: Facts) -> list[Evidence] | None:
    """It waits, and every backend that serves it runs and uses no CPU (under 2% of a core for 3 s)"""
    if not facts.inputs.waiting:
        return None
    served = {
        node: backend for node, backend in facts.inputs.backends.items() if backend.reachable and backend.peer
    }
    idle = {node: backend for node, backend in served.items() if _idle(backend)}
    if not served or len(idle) < len(served):
        return None
    return [
        Evidence(
            source=f"process {node}",
            line=f"rpc-server (state {backend.state or '?'}) used {backend.cpu_s:.2f} s of CPU "
            f"in {backend.window_s:.0f} s, with {backend.peer} connected",
        )
        for node, backend in idle.items()
    ]


def _idle(backend: BackendSnapshot) -> bool:
    if backend.cpu_s is None or backend.window_s < MIN_WINDOW_S or backend.state in (None, "R", "D"):
        return False
    return backend.cpu_s < IDLE_CPU_SHARE * backend.window_s


def other_build_at_the_end(facts: Facts) -> list[Evidence] | None:
    """It lost a backend, died of SIGSEGV or failed a check, the builds differ, and no backend was killed"""
    differing = differing_builds(facts)
    broke = (
        broke_at_a_backend(facts) or facts.best_line(ends.ASSERTION) or facts.died_of(*_SEGFAULTS) is not None
    )
    if not differing or not facts.failed or not broke:
        return None
    killed = any(count > 0 for count in facts.inputs.oom_kills.values()) or any(
        matches.first(kind)
        for matches in facts.journals.values()
        for kind in (ends.KILLED, hardware.KERNEL_OOM)
    )
    return None if killed else differing


def other_build(facts: Facts) -> list[Evidence] | None:
    """It runs, and the nodes' builds differ"""
    return differing_builds(facts) if facts.inputs.running else None


def differing_builds(facts: Facts) -> list[Evidence] | None:
    """The build of each node, where they are not all the same."""
    builds = facts.inputs.builds
    if len(set(builds.values())) < 2:
        return None
    return [Evidence(source=f"build {node}", line=f"llama.cpp {build}") for node, build in builds.items()]
