"""Section 3: how long each load took, in which phases, and what it put where."""

from dataclasses import dataclass

from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.plan import Plan
from harness.contracts.run_records import Trial
from harness.report.data import RunData
from harness.report.format import slug
from harness.report.sections.cluster import buffers_of, colour_place
from harness.report.sections.verdict import Mark, heat_of, mark

FLOORS = {"wire_floor_s": "wire", "disk_floor_s": "disk", "hash_floor_s": "hash"}
PHASE_NAMES = {
    "connect": "connect to backends",
    "open": "open the model",
    "transfer": "transfer tensors",
    "kv": "KV cache",
    "warmup": "warm-up",
    "other": "not attributed",
}


@dataclass(frozen=True)
class LoadRow:
    """One load."""

    trial: str
    anchor: str
    model: str
    heat: str
    mark: Mark
    load_s: float | None
    canary_s: float | None
    """Coordinator exec -> first token of the canary."""
    overhead_s: float | None
    offloaded: str
    wire_bytes: float | None
    phases: list[tuple[str, float]]
    """Phase and seconds, in order; ``other`` is what no phase accounts for."""
    floors: list[tuple[str, float]]

    @property
    def label(self) -> str:
        """Model and heat, for an axis."""
        return f"{self.model}, {self.heat}" if self.heat else self.model


@dataclass(frozen=True)
class PlanRow:
    """Plan beside llama.cpp's own figures, for one backend of one load."""

    node: str
    colour: int
    layers: int
    planned_model: int
    reported_model: int | None
    planned_kv: int
    reported_kv: int | None
    planned_compute: int
    reported_compute: int | None
    off: float | None
    """(reported - planned) / planned over the three together; 0.01 is one per cent."""


@dataclass(frozen=True)
class PlanTable:
    """One load's plan, backend by backend."""

    load: LoadRow
    distributed: bool | None
    rows: list[PlanRow]
    local: list[tuple[str, int, int, int]]
    """Device, model, KV and compute bytes that stayed in the coordinator's own memory."""
    total_planned: int
    total_reported: int | None
    total_off: float | None


def loads(run: RunData) -> list[LoadRow]:
    """Every load of the run, in order."""
    return [_load(trial) for trial in run.trials if trial.kind == "load"]


def plan_tables(run: RunData) -> list[PlanTable]:
    """Plan against report for every load that had a plan."""
    return [
        _plan_table(run, trial, trial.coordinator, trial.coordinator.plan)
        for trial in run.trials
        if trial.kind == "load" and trial.coordinator and trial.coordinator.plan
    ]


def _load(trial: Trial) -> LoadRow:
    state = trial.coordinator
    timings = state.timings if state else None
    report = state.report if state else None
    load_s = timings.load_s if timings else None
    canary = None
    if timings and timings.canary_ns and timings.exec_ns:
        canary = (timings.canary_ns - timings.exec_ns) / 1e9
    return LoadRow(
        trial=trial.id,
        anchor=slug(trial.id),
        model=trial.model,
        heat=heat_of(trial),
        mark=mark(trial.outcome),
        load_s=load_s if load_s is not None else trial.metrics.get("load_s"),
        canary_s=canary,
        overhead_s=timings.overhead_s if timings else None,
        offloaded=f"{report.offloaded}/{report.layers_total}"
        if report and report.offloaded is not None
        else "–",
        wire_bytes=trial.metrics.get("wire_bytes"),
        phases=_phases(timings.phases if timings else {}, load_s),
        floors=[(name, trial.metrics[key]) for key, name in FLOORS.items() if key in trial.metrics],
    )


def _phases(phases: dict[str, float], load_s: float | None) -> list[tuple[str, float]]:
    order = list(PHASE_NAMES)
    ordered = sorted(phases.items(), key=lambda p: order.index(p[0]) if p[0] in order else len(order))
    rest = (load_s or 0.0) - sum(phases.values())
    if rest > 0.01 * (load_s or 1.0):
        ordered.append(("other", rest))
    return ordered


def _plan_table(run: RunData, trial: Trial, state: CoordinatorState, plan: Plan) -> PlanTable:
    buffers = state.report.buffers if state.report else []
    rows: list[PlanRow] = []
    for share in plan.shares:
        found = buffers_of(buffers, share.node, share.endpoint)
        model = sum(b.model_bytes for b in found) if found else None
        kv = sum(b.kv_bytes for b in found) if found else None
        compute = sum(b.compute_bytes for b in found) if found else None
        reported = None if model is None else model + (kv or 0) + (compute or 0)
        rows.append(
            PlanRow(
                node=share.node,
                colour=colour_place(run, share.node),
                layers=share.layers,
                planned_model=share.model_bytes,
                reported_model=model,
                planned_kv=share.kv_bytes,
                reported_kv=kv,
                planned_compute=share.compute_bytes,
                reported_compute=compute,
                off=_off(reported, share.total_bytes),
            )
        )
    planned = sum(s.total_bytes for s in plan.shares)
    known = [(r.reported_model or 0) + (r.reported_kv or 0) + (r.reported_compute or 0) for r in rows]
    complete = bool(rows) and all(r.reported_model is not None for r in rows)
    total = sum(known) if complete else None
    return PlanTable(
        load=_load(trial),
        distributed=state.report.distributed if state.report else state.distributed,
        rows=rows,
        local=[
            (b.device, b.model_bytes, b.kv_bytes, b.compute_bytes)
            for b in buffers
            if not b.device.startswith("RPC")
        ],
        total_planned=planned,
        total_reported=total,
        total_off=_off(total, planned),
    )


def _off(reported: int | None, planned: int) -> float | None:
    return (reported - planned) / planned if reported is not None and planned else None
