"""Figures of a load: from the coordinator's state, from the nodes' samples, and the least it could take."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from harness.cluster.ssh import run_script
from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.diagnosis import Diagnosis, FailureClass
from harness.errors import HarnessError
from harness.tensor_cache.client import TOOL, reader
from harness.trials.context import Context
from harness.trials.lab import stated_rate

SAMPLE_BYTES = 128 << 20
"""Enough for a rate, little beside a model."""


def load_metrics(state: CoordinatorState) -> dict[str, float]:
    """Figures of the load itself: sizes, phases, times."""
    figures: dict[str, float] = {}
    if state.plan:
        figures["file_bytes"] = state.plan.file_bytes
    if state.report:
        figures["rpc_model_bytes"] = sum(b.model_bytes for b in state.report.rpc_buffers)
        figures["layers_offloaded"] = state.report.offloaded or 0
    if timings := state.timings:
        figures |= {f"phase_{name}_s": seconds for name, seconds in timings.phases.items()}
        times = {"load_s": timings.load_s, "overhead_s": timings.overhead_s}
        figures |= {name: seconds for name, seconds in times.items() if seconds is not None}
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


async def measured_rates(ctx: Context, model: str) -> dict[str, float]:
    """Bytes per second of the head node's disk and of llama.cpp's hash, once for each model of a run.

    Empty where they cannot be measured: an older deployment has no tool for it.
    """
    if model not in ctx.rates:
        ctx.rates[model] = {}
        path = str(ctx.models[model]["path"])
        argument = {"do": "measure_rates", "path": path, "size": SAMPLE_BYTES, "tool": TOOL}
        with suppress(HarnessError):
            head = ctx.inventory.head
            user = reader(head)
            measured = await run_script(head, "model_file.py", argument, root=True, user=user)
            ctx.rates[model] = {name: float(rate) for name, rate in measured.items() if rate}
    return ctx.rates[model]


def load_floors(
    rates: Mapping[str, float], file_bytes: float | None, hashed_bytes: float | None
) -> dict[str, float]:
    """Seconds of disk and hash; one whose bytes or rate are not known is left out.

    Args:
        rates: bytes per second of each.
        file_bytes: what is read; None where the page cache may have it.
        hashed_bytes: what the planner says is hashed: tensors over 10 MiB that go to backends.
    """
    bytes_of = {"disk": file_bytes, "hash": hashed_bytes}
    return {
        f"{name}_floor_s": size / rates[name]
        for name, size in bytes_of.items()
        if size is not None and name in rates
    }


def local_footprint(state: CoordinatorState) -> dict[str, float]:
    """What the coordinator itself holds of the model: with repacking, twice the file."""
    if not state.report:
        return {}
    local = state.report.local_buffers
    total = sum(b.model_bytes for b in local)
    figures = {f"local_{b.device.lower()}_bytes": float(b.model_bytes) for b in local if b.model_bytes}
    if total and state.plan:
        figures["local_model_bytes"] = total
        figures["local_model_to_file_ratio"] = total / state.plan.file_bytes
    return figures


def load_answer(state: CoordinatorState, metrics: dict[str, float], diagnosis: Diagnosis | None) -> str:
    """The load in one sentence."""
    report = state.report
    layers = f"{report.offloaded}/{report.layers_total} layers" if report else "no load report"
    ready = f"ready in {metrics['load_s']:.1f} s" if "load_s" in metrics else "ready"
    if diagnosis and diagnosis.failure_class is FailureClass.NOT_DISTRIBUTED:
        local = metrics.get("local_model_bytes", 0) / 2**30
        ratio = metrics.get("local_model_to_file_ratio", 0)
        return f"{ready}, {layers} offloaded; the coordinator holds {local:.1f} GiB ({ratio:.2f} x the file)"
    if diagnosis:
        return f"{ready}, {layers}, but {diagnosis.evidence[0].line}"
    count = sum(share.layers > 0 for share in state.plan.shares) if state.plan else 0
    first = f", first token after {metrics['canary_s']:.1f} s" if "canary_s" in metrics else ""
    wire = f", {metrics['wire_bytes'] / 2**20:,.0f} MiB over the wire" if "wire_bytes" in metrics else ""
    return f"{ready}{first}, {layers} on {count} backends{wire}"
