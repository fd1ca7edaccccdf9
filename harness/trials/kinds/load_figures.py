"""Figures of a load, from the coordinator's state and the nodes' samples, and the sentence they make."""

from typing import Any

from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.diagnosis import Diagnosis, FailureClass
from harness.trials.context import Context
from harness.trials.lab import stated_rate


def load_metrics(state: CoordinatorState) -> dict[str, float]:
    """Figures of the load itself: sizes, phases, times."""
    figures: dict[str, float] = {}
    if state.plan:
        figures["file_bytes"] = state.plan.file_bytes
    if state.report:
        figures["rpc_model_bytes"] = sum(
            b.model_bytes for b in state.report.buffers if b.device.startswith("RPC")
        )
        figures["layers_offloaded"] = state.report.offloaded or 0
    if timings := state.timings:
        figures |= {f"phase_{name}_s": seconds for name, seconds in timings.phases.items()}
        if timings.load_s is not None:
            figures["load_s"] = timings.load_s
        if timings.overhead_s is not None:
            figures["overhead_s"] = timings.overhead_s
        if timings.canary_ns and timings.exec_ns:
            figures["canary_s"] = (timings.canary_ns - timings.exec_ns) / 1e9
    return figures


def wire_metrics(
    ctx: Context, state: CoordinatorState, started_ns: int, ended_ns: int, details: dict[str, Any]
) -> dict[str, float]:
    """Bytes each backend received over the load, and the time they need at the link's stated rate."""
    head = ctx.inventory.head.name
    received = {
        name: count
        for share in (state.plan.shares if state.plan else [])
        if (name := share.node) != head
        and (count := ctx.sampler.series.grown(name, "received_bytes", started_ns, ended_ns)) is not None
    }
    details["wire_bytes"] = received
    if not received:
        return {}
    total = sum(received.values())
    figures = {"wire_bytes": float(total)}
    if rate := stated_rate(ctx.lab, head):
        figures["wire_floor_s"] = 8 * total / rate
    return figures


def local_footprint(state: CoordinatorState) -> dict[str, float]:
    """What the coordinator itself holds of the model: with repacking, twice the file."""
    if not state.report:
        return {}
    local = [b for b in state.report.buffers if not b.device.startswith("RPC")]
    total = sum(b.model_bytes for b in local)
    figures = {f"local_{b.device.lower()}_bytes": float(b.model_bytes) for b in local if b.model_bytes}
    if total and state.plan:
        figures["local_model_bytes"] = total
        figures["local_model_to_file_ratio"] = total / state.plan.file_bytes
    return figures


def load_answer(state: CoordinatorState, metrics: dict[str, float], diagnosis: Diagnosis | None) -> str:
    """What was seen of the load, in a sentence."""
    report = state.report
    layers = f"{report.offloaded}/{report.layers_total} layers" if report else "no load report"
    ready = f"ready in {metrics['load_s']:.1f} s" if "load_s" in metrics else "ready"
    if diagnosis and diagnosis.failure_class is FailureClass.NOT_DISTRIBUTED:
        held = metrics.get("local_model_bytes", 0) / 2**30
        ratio = metrics.get("local_model_to_file_ratio", 0)
        return f"{ready}, {layers} offloaded; the coordinator holds {held:.1f} GiB ({ratio:.2f} x the file)"
    if diagnosis:
        return f"{ready}, {layers}, but {diagnosis.evidence[0].line}"
    count = sum(share.layers > 0 for share in state.plan.shares) if state.plan else 0
    first = f", first token after {metrics['canary_s']:.1f} s" if "canary_s" in metrics else ""
    wire = f", {metrics['wire_bytes'] / 2**20:,.0f} MiB over the wire" if "wire_bytes" in metrics else ""
    return f"{ready}{first}, {layers} on {count} backends{wire}"
