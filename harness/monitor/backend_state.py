"""The state of a backend, from its node's sample alone: nothing here ever connects to it.

rpc-server serves one client and refuses the others in silence, so to a probe a busy backend looks like one
that is down. The node itself knows better: its socket table, its units, its processes.
"""

from dataclasses import dataclass
from enum import StrEnum

from harness.monitor.sample import RPC_SERVERS, Process, Sample, Unit

RPC_UNIT = "llama-rpc-server.service"
SILENT_AFTER_S = 5.0
"""A sample that is older says nothing about now."""
START_WITHIN_S = 60.0
"""A process that runs for longer without listening is not starting any more."""

_ON_ITS_WAY = frozenset({"active", "activating", "reloading"})


class State(StrEnum):
    """What a backend can be."""

    IDLE = "idle"
    BUSY = "busy"
    STARTING = "starting"
    DOWN = "down"
    SILENT = "silent"


@dataclass(frozen=True)
class BackendState:
    """A state, and the observation that decides it."""

    state: State
    reason: str


def age_s(sample: Sample, now_ns: int) -> float:
    """How old a sample is in seconds, never below 0.

    Args:
        now_ns: UTC on the head node's clock; the sample's own offset to that clock is taken out.
    """
    behind_ns = now_ns - sample.time_ns + (sample.clock_offset_s or 0.0) * 1e9
    return max(0.0, behind_ns / 1e9)


def backend_state(sample: Sample | None, now_ns: int) -> BackendState:
    """State of the backend on a sample's node; a busy one is never said to be down.

    Args:
        sample: the node's newest sample; None where there is none.
        now_ns: UTC on the head node's clock, nanoseconds.
    """
    if sample is None:
        return BackendState(State.SILENT, "no sample of the last seconds")
    if (age := age_s(sample, now_ns)) > SILENT_AFTER_S:
        return BackendState(State.SILENT, f"its last sample is {age:.0f} s old")
    if sample.rpc is None:
        return BackendState(State.DOWN, "its monitor watches no rpc-server")
    if sample.rpc.peer is not None:
        return BackendState(State.BUSY, f"serves {sample.rpc.peer}")
    if sample.rpc.listening and sample.rpc.backlog:
        return BackendState(State.BUSY, f"{sample.rpc.backlog} waiting to be served")
    if sample.rpc.listening:
        return BackendState(State.IDLE, "listens, serves nobody")
    return _without_socket(sample, sample.units.get(RPC_UNIT))


def _without_socket(sample: Sample, unit: Unit | None) -> BackendState:
    process = next((one for one in sample.processes if one.name in RPC_SERVERS), None)
    if process is not None:
        return _running(process, sample.time_ns)
    if unit is None:
        return BackendState(State.DOWN, f"no process, and no unit {RPC_UNIT}")
    if unit.active in _ON_ITS_WAY:
        return BackendState(State.STARTING, f"unit is {unit.active} ({unit.sub}), restarts: {unit.restarts}")
    return BackendState(State.DOWN, f"unit is {unit.active} ({unit.sub}), result {unit.result}")


def _running(process: Process, now_ns: int) -> BackendState:
    known = process.started_ns is not None
    for_s = (now_ns - (process.started_ns or now_ns)) / 1e9
    if for_s > START_WITHIN_S:
        return BackendState(State.DOWN, f"process {process.pid} runs for {for_s:.0f} s and does not listen")
    since = f" for {for_s:.0f} s" if known else ""
    return BackendState(State.STARTING, f"process {process.pid} runs{since}, does not listen yet")
