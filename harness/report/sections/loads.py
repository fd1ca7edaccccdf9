"""Section 3: how long each load took, in which phases, and how much memory it used beside the plan."""

from dataclasses import dataclass

from harness.contracts.coordinator_state import BackendBuffers, CoordinatorState
from harness.contracts.plan import Plan
from harness.contracts.run_records import Trial
from harness.report.data import Row, RunData
from harness.report.format import DASH, slug
from harness.report.sections.cluster import buffers_of, colour_place, offloaded
from harness.report.sections.verdict import Mark, cache_state, outcome_mark

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
    cache: str
    """``cold``, ``warm`` or empty."""
    mark: Mark
    load_s: float | None
    canary_s: float | None
    overhead_s: float | None
    offloaded: str
    wire_bytes: float | None
    phases: list[tuple[str, float]]
    """Phase and seconds, in order; ``other`` is what no phase accounts for."""
    floors: list[tuple[str, float]]

    @property
    def label(self) -> str:
        """Model and state of the caches, for an axis."""
        return f"{self.model}, {self.cache}" if self.cache else self.model


def load_rows(run: RunData) -> list[LoadRow]:
    """Every load of the run, in order."""
    return [_load(trial) for trial in run.trials if trial.kind == "load"]


def plan_tables(run: RunData) -> list[Row]:
    """Plan against report for every load that had a plan."""
    return [
        _plan_table(run, trial, trial.coordinator, trial.coordinator.plan)
        for trial in run.trials
        if trial.kind == "load" and trial.coordinator and trial.coordinator.plan
    ]


def _load(trial: Trial) -> LoadRow:
    state = trial.coordinator
    timings = state.timings if state else None
    load_s = timings.load_s if timings else None
    return LoadRow(
        trial=trial.id,
        anchor=slug(trial.id),
        model=trial.model,
        cache=cache_state(trial),
        mark=outcome_mark(trial.outcome),
        load_s=load_s if load_s is not None else trial.metrics.get("load_s"),
        canary_s=trial.metrics.get("canary_s"),
        overhead_s=timings.overhead_s if timings else None,
        offloaded=offloaded(state.report if state else None) or DASH,
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


def _plan_table(run: RunData, trial: Trial, state: CoordinatorState, plan: Plan) -> Row:
    buffers = state.report.buffers if state.report else []
    rows: list[Row] = []
    for share in plan.shares:
        own = buffers_of(buffers, share.node, share.endpoint)
        reported = _buffer_sizes(own) if own else None
        rows.append(
            {
                "node": share.node,
                "colour": colour_place(run, share.node),
                "layers": share.layers,
                "planned": (share.model_bytes, share.kv_bytes, share.compute_bytes),
                "reported": reported,
                "off": _off(sum(reported) if reported else None, share.total_bytes),
            }
        )
    planned = sum(s.total_bytes for s in plan.shares)
    complete = bool(rows) and all(row["reported"] for row in rows)
    total = sum(sum(row["reported"]) for row in rows) if complete else None
    return {
        "trial": trial.id,
        "distributed": state.report.distributed if state.report else state.distributed,
        "rows": rows,
        "local": [(b.device, _buffer_sizes([b])) for b in buffers if not b.is_rpc],
        "total_planned": planned,
        "total_reported": total,
        "total_off": _off(total, planned),
    }


def _buffer_sizes(buffers: list[BackendBuffers]) -> tuple[int, int, int]:
    """Bytes of model, KV cache and compute buffers."""
    return (
        sum(b.model_bytes for b in buffers),
        sum(b.kv_bytes for b in buffers),
        sum(b.compute_bytes for b in buffers),
    )


def _off(reported: int | None, planned: int) -> float | None:
    """The difference as a ratio of the plan; 0.01 is one per cent."""
    return (reported - planned) / planned if reported is not None and planned else None
