"""One coordinator from the request to its exit (``GET /admin/coordinator``), and its log's load report."""

import re
from enum import StrEnum

from harness.contracts import Record
from harness.contracts.diagnosis import Diagnosis, ExitStatus, Signal
from harness.contracts.plan import Plan

_ENDPOINT = re.compile(r"^RPC\d*\[(.+)\]$")


class BackendBuffers(Record):
    """Memory that llama-server's own log says it placed on one device."""

    device: str
    """As printed: ``RPC0[10.0.0.11:50052]``, ``CPU_Mapped``, ``CPU_REPACK``, ..."""
    node: str | None = None
    """The node behind an RPC device, once matched with the plan."""
    model_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0

    @property
    def is_rpc(self) -> bool:
        """Whether a backend holds it, and not the coordinator itself."""
        return self.device.startswith("RPC")

    @property
    def total_bytes(self) -> int:
        return self.model_bytes + self.kv_bytes + self.compute_bytes


class LoadReport(Record):
    """What llama-server's log says of one load."""

    offloaded: int | None = None
    layers_total: int | None = None
    buffers: list[BackendBuffers] = []
    build: int | None = None

    @property
    def rpc_buffers(self) -> list[BackendBuffers]:
        return [buffer for buffer in self.buffers if buffer.is_rpc]

    @property
    def local_buffers(self) -> list[BackendBuffers]:
        return [buffer for buffer in self.buffers if not buffer.is_rpc]

    @property
    def distributed(self) -> bool:
        """All layers offloaded, and every RPC device that was used holds part of the model."""
        return distribution_gap(self) is None


def rpc_endpoint(device: str) -> str | None:
    """``address:port`` of a buffer's device; None where it is no RPC device."""
    match = _ENDPOINT.match(device)
    return match[1] if match else None


def missing_backends(report: LoadReport, plan: Plan) -> list[str]:
    """Nodes that the plan gives layers to and that hold no part of the model, in the plan's order."""
    holding = {rpc_endpoint(b.device) for b in report.buffers if b.model_bytes > 0}
    return [s.node for s in plan.shares if s.layers > 0 and s.endpoint not in holding]


def distribution_gap(report: LoadReport, plan: Plan | None = None) -> str | None:
    """What is missing from a full distribution over the backends; None where the load is distributed.

    It is distributed if every layer is offloaded and each backend that has to hold part of the model does:
    those that the plan gives layers to, or without a plan every RPC device in the log.
    """
    if report.offloaded is None:
        return "the log has no 'offloaded' line"
    if report.offloaded != report.layers_total:
        return f"offloaded {report.offloaded}/{report.layers_total} layers"
    if plan is not None and (missing := missing_backends(report, plan)):
        return f"no model buffer on {', '.join(missing)}"
    filled = [buffer.model_bytes > 0 for buffer in report.rpc_buffers]
    if not any(filled):
        return "no RPC device holds a model buffer"
    return None if plan or all(filled) else "an RPC device holds no model buffer"


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

        The time of ready is known to within one poll; the whole poll is counted.
        """
        if self.exec_ns is None or self.healthy_ns is None or self.ready_ns is None:
            return None
        ready_after = self.healthy_ns if self.loading_ns is None else self.loading_ns
        return (self.exec_ns - self.requested_ns + self.ready_ns - ready_after) / 1e9


class CoordinatorState(Record):
    """``GET /admin/coordinator``."""

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
    drained: list[str] = []
    """Backends that no load is planned on."""
