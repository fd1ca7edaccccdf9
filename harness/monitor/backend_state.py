"""The state of a backend, from its node's sample alone: nothing here ever connects to it.

rpc-server serves one client and ignores the others without a word, so a probe cannot distinguish a busy
backend from one that is down. The node itself can: by its socket table, its units and its processes.
"""

from dataclasses import dataclass
from enum import StrEnum

from harness.monitor.sample import RPC_SERVERS, Sample, Unit

RPC_UNIT = "llama-rpc-server.service"
RPC_FIREWALL_UNIT = "llama-rpc-firewall.service"
SILENT_AFTER_S = 5.0
"""An older sample is no evidence of the present."""
START_WITHIN_S = 60.0
"""A process that has run for longer without listening is not starting any more."""

_FIREWALL_SUFFIX = "-firewall.service"
_FIREWALL_HOLDS = frozenset({"active", "reloading"})
_ON_ITS_WAY = frozenset({"active", "activating", "reloading"})


class State(StrEnum):
    """States of a backend; of a node without one: up or silent."""

    IDLE = "idle"
    BUSY = "busy"
    STARTING = "starting"
    DOWN = "down"
    SILENT = "silent"
    """Its monitor is silent, which is no evidence about the backend."""
    UP = "up"
    UNKNOWN = "unknown"
    """No monitor can be asked."""


@dataclass(frozen=True)
class BackendState:
    """A state, and the observation that decides it."""

    state: State
    reason: str

    @property
    def has_samples(self) -> bool:
        """Whether the node's monitor sends samples."""
        return self.state not in (State.SILENT, State.UNKNOWN)


def age_s(sample: Sample, now_ns: int) -> float:
    """How old a sample is in seconds, never below 0.

    Args:
        sample: its clock's offset to the head node's is subtracted.
        now_ns: UTC on the head node's clock, nanoseconds.
    """
    return max(0.0, (now_ns - sample.head_time_ns) / 1e9)


def backend_state(sample: Sample | None, now_ns: int) -> BackendState:
    """State of the backend on a sample's node; a busy one is never reported as down.

    Args:
        sample: the node's newest sample; None where there is none.
        now_ns: UTC on the head node's clock, nanoseconds.
    """
    return state_at_age(sample, 0.0 if sample is None else age_s(sample, now_ns))


def state_at_age(sample: Sample | None, age_s: float, *, has_backend: bool = True) -> BackendState:
    """The same for a reader that knows the sample's age by its own clock.

    Args:
        sample: the node's newest sample; None where there is none.
        age_s: how old it is, seconds.
        has_backend: whether the inventory puts a backend on the node.
    """
    if sample is None:
        return BackendState(State.SILENT, "no sample")
    if age_s > SILENT_AFTER_S:
        return BackendState(State.SILENT, f"its last sample is {age_s:.0f} s old")
    if not has_backend:
        return BackendState(State.UP, "no backend here")
    if sample.rpc is None:
        return BackendState(State.DOWN, "its monitor watches no rpc-server")
    if sample.rpc.peer is not None:
        return BackendState(State.BUSY, f"serves {sample.rpc.peer}")
    if sample.rpc.listening and sample.rpc.backlog:
        return BackendState(State.BUSY, f"{sample.rpc.backlog} waiting to be served")
    if sample.rpc.listening:
        return BackendState(State.IDLE, "listens, serves nobody")
    return _without_socket(sample, sample.units.get(RPC_UNIT))


def state_of_refused(reason: str) -> BackendState:
    """State of a node whose sample is refused: it counts as silent."""
    return BackendState(State.SILENT, f"sample refused: {reason}")


def missing_firewalls(sample: Sample) -> list[str]:
    """The node's units that should keep a firewall loaded and do not run; what they protect is stopped."""
    return sorted(
        name
        for name, unit in sample.units.items()
        if name.endswith(_FIREWALL_SUFFIX) and unit.active not in _FIREWALL_HOLDS
    )


def state_without_redis(*, leased: bool) -> BackendState:
    """State of a backend as far as the router itself knows it, where no Redis is configured.

    Args:
        leased: whether the router's own coordinator uses it.
    """
    if leased:
        return BackendState(State.BUSY, "leased to our coordinator; no Redis to ask for more")
    return BackendState(State.UNKNOWN, "no Redis to ask; a backend is never connected to for this")


def _without_socket(sample: Sample, unit: Unit | None) -> BackendState:
    process = next((each for each in sample.processes if each.name in RPC_SERVERS), None)
    if process is not None:
        if process.started_ns is None:
            return BackendState(State.STARTING, f"process {process.pid} runs, does not listen yet")
        for_s = (sample.time_ns - process.started_ns) / 1e9
        state = State.DOWN if for_s > START_WITHIN_S else State.STARTING
        return BackendState(state, f"process {process.pid} runs for {for_s:.0f} s and does not listen")
    if RPC_FIREWALL_UNIT in missing_firewalls(sample):
        return BackendState(State.DOWN, f"no firewall: {RPC_FIREWALL_UNIT} does not run, see its journal")
    if unit is None:
        return BackendState(State.DOWN, f"no process, and no unit {RPC_UNIT}")
    if unit.active in _ON_ITS_WAY:
        return BackendState(State.STARTING, f"unit is {unit.active} ({unit.sub}), restarts: {unit.restarts}")
    return BackendState(State.DOWN, f"unit is {unit.active} ({unit.sub}), result {unit.result}")
