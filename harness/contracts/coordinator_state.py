"""``GET /admin/coordinator``: one coordinator from the request to its exit; run records keep it too."""

from enum import StrEnum

from harness.contracts.diagnosis import Diagnosis, ExitStatus, Signal
from harness.contracts.load_report import LoadReport
from harness.contracts.plan import Plan
from harness.contracts.record import Record


class CoordinatorPhase(StrEnum):
    """Where a coordinator is in its life."""

    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    ENDED = "ended"


class LoadTimings(Record):
    """When each step of a load happened, on the head node's clock."""

    requested_ns: int
    exec_ns: int | None = None
    loading_ns: int | None = None
    """The last time that ``/health`` was asked and did not answer 200: it was ready after that."""
    healthy_ns: int | None = None
    """``/health`` first answered 200."""
    ready_ns: int | None = None
    """The router saw that health, model name and offload lines agree with the plan."""
    canary_ns: int | None = None
    """First token of a one-token canary."""
    phases: dict[str, float] = {}
    """Seconds per phase, by arrival of log lines: ``connect``, ``open``, ``transfer``, ``kv``, ``warmup``."""

    @property
    def load_s(self) -> float | None:
        """Load time: coordinator exec -> ``/health`` 200."""
        if self.exec_ns is None or self.healthy_ns is None:
            return None
        return (self.healthy_ns - self.exec_ns) / 1e9

    @property
    def overhead_s(self) -> float | None:
        """Router's own share at most: request -> exec, plus ready -> noticed.

        When the coordinator became ready is known to within one look: the whole of it is counted.
        """
        if self.exec_ns is None or self.healthy_ns is None or self.ready_ns is None:
            return None
        ready_after = self.healthy_ns if self.loading_ns is None else self.loading_ns
        return (self.exec_ns - self.requested_ns + self.ready_ns - ready_after) / 1e9


class CoordinatorState(Record):
    """``GET /admin/coordinator``: one coordinator from request to exit."""

    phase: CoordinatorPhase
    start_id: str | None = None
    """Names the start and its log folder; ``GET /admin/logs/{start_id}`` gives the log."""
    model: str | None = None
    pid: int | None = None
    argv: list[str] = []
    plan: Plan | None = None
    timings: LoadTimings | None = None
    report: LoadReport | None = None
    distributed: bool | None = None
    log_dir: str | None = None
    requests_in_flight: int = 0
    signals: list[Signal] = []
    exit: ExitStatus | None = None
    diagnosis: Diagnosis | None = None
