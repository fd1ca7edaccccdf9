"""Conditions that look at the nodes around a coordinator: builds, links, stalled backends, paging."""

import signal

from harness.contracts.diagnosis import Evidence
from harness.diagnosis.conditions import broke_at_a_backend
from harness.diagnosis.evidence import BackendSeen
from harness.diagnosis.facts import Facts
from harness.diagnosis.logs.patterns import ends, memory, rpc
from harness.diagnosis.thrash import find_thrash
from harness.monitor.backend_state import SILENT_AFTER_S

IDLE_CPU_SHARE = 0.02
"""Of one core: what rpc-server uses while it waits for its coordinator."""
LOOKED_AT_S = 3.0
"""A shorter look says nothing about a process that uses no CPU."""
STOPPED_STATES = ("T", "t")
_SEGFAULTS = (signal.SIGSEGV, signal.SIGBUS)


def thrashes(facts: Facts) -> list[Evidence] | None:
    """It waits or runs, and on a backend's node rpc-server lives off its swap: at least 128 MiB in swap, and
    100 major faults a second or nothing but waiting for memory a fifth of the time (PSI)"""
    found = find_thrash(facts.inputs.pressure) if facts.inputs.running or facts.inputs.waiting else None
    return found.evidence if found else None


def node_cut_off(facts: Facts) -> list[Evidence] | None:
    """It waits, or lost a backend, and the node of a backend neither answers nor sends samples, or nobody
    acknowledges what is sent between the two"""
    if not (facts.inputs.waiting or broke_at_a_backend(facts)):
        return None
    return [
        Evidence(source=f"node {node}", line=_silence(seen))
        for node, seen in facts.inputs.backends.items()
        if seen.unheard or not (seen.reachable or _heard(seen))
    ] or None


def _heard(seen: BackendSeen) -> bool:
    """Whether its samples still come: then its network works, whatever else kept a login from it."""
    return seen.silent_s is not None and seen.silent_s < SILENT_AFTER_S


def _silence(seen: BackendSeen) -> str:
    if seen.reachable and seen.unheard:
        return seen.unheard
    since = f"; its last sample is {seen.silent_s:.0f} s old" if seen.silent_s is not None else ""
    return f"the node cannot be reached{since}"


def no_way(facts: Facts) -> list[Evidence] | None:
    """It failed or waits; its log, or a node's journal or kernel log, says that packets found no way"""
    if not (facts.failed or facts.inputs.waiting):
        return None
    own = facts.log(rpc.NO_WAY)
    found = [own.evidence] if own else []
    if broke_at_a_backend(facts) or facts.inputs.waiting:
        found += [
            Evidence(source=f"journal {node}", line=hit.text)
            for node, seen in facts.around.items()
            if (hit := seen.find(rpc.NO_WAY))
        ]
    return found or None


def backend_stopped(facts: Facts) -> list[Evidence] | None:
    """It waits, and a backend's rpc-server is stopped (state T) with its coordinator connected"""
    if not facts.inputs.waiting:
        return None
    return [
        Evidence(
            source=f"process {node}", line=f"rpc-server is stopped (state {seen.state}), peer {seen.peer}"
        )
        for node, seen in facts.inputs.backends.items()
        if seen.reachable and seen.peer and seen.state in STOPPED_STATES
    ] or None


def backends_idle(facts: Facts) -> list[Evidence] | None:
    """It waits, and every backend that serves it lives and uses no CPU (under 2% of a core for 3 s)"""
    if not facts.inputs.waiting:
        return None
    served = {node: seen for node, seen in facts.inputs.backends.items() if seen.reachable and seen.peer}
    idle = {node: seen for node, seen in served.items() if _idle(seen)}
    if not served or len(idle) < len(served):
        return None
    return [
        Evidence(
            source=f"process {node}",
            line=f"rpc-server (state {seen.state or '?'}) used {seen.cpu_s:.2f} s of CPU "
            f"in {seen.window_s:.0f} s, with {seen.peer} connected",
        )
        for node, seen in idle.items()
    ]


def _idle(seen: BackendSeen) -> bool:
    known = seen.cpu_s is not None and seen.window_s >= LOOKED_AT_S and seen.state not in (None, "R", "D")
    return known and (seen.cpu_s or 0.0) < IDLE_CPU_SHARE * seen.window_s


def other_build_at_the_end(facts: Facts) -> list[Evidence] | None:
    """It lost a backend, died of SIGSEGV or failed a check, the builds differ, and no backend was killed"""
    differing = differing_builds(facts)
    broke = broke_at_a_backend(facts) or facts.log(ends.ASSERTION) or facts.died_of(*_SEGFAULTS) is not None
    if not differing or not facts.failed or not broke:
        return None
    killed = any(count > 0 for count in facts.inputs.oom_kills.values()) or any(
        seen.find(kind) for seen in facts.around.values() for kind in (ends.KILLED, memory.KERNEL_OOM)
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


def waits(facts: Facts) -> list[Evidence] | None:
    """It runs, and a request or a load makes no progress"""
    return [] if facts.inputs.waiting else None
