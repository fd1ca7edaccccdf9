"""Sections 5 and 6, continued: parity, soaks and injected faults, from what their trials recorded."""

from dataclasses import dataclass
from typing import Any

from harness.contracts.run_records import Outcome, Trial
from harness.report.data import RunData
from harness.report.format import slug
from harness.report.sections.cluster import colour_place
from harness.report.sections.verdict import Mark, mark
from harness.runs.metrics import decode_rate


@dataclass(frozen=True)
class ParityRow:
    """Greedy tokens over the backends beside those of the coordinator alone."""

    trial: str
    anchor: str
    model: str
    mark: Mark
    compared: int | None
    equal: int | None
    gap: float | None
    """Largest difference of an equal token's log probability."""
    reference: str
    reference_where: str
    seen: str
    seen_where: str
    alike: int
    """Characters that the two texts share from their beginning."""


@dataclass(frozen=True)
class DriftRow:
    """How a figure moved over a soak."""

    what: str
    colour: int | None
    """Of the node that it is about."""
    per_hour: float
    low: float | None
    high: float | None
    beyond_noise: bool
    percent: bool
    """Per cent of the median; else bytes."""


@dataclass(frozen=True)
class SoakRow:
    """One soak."""

    trial: str
    anchor: str
    model: str
    mark: Mark
    took_s: float
    requests: int
    errors: list[tuple[str, int]]
    """Message and how often."""
    failed: int
    restarts: int
    drifts: list[DriftRow]
    rates: list[tuple[float, float]]
    """Seconds since the trial's start, and decode rate by the client's clock."""


@dataclass(frozen=True)
class FaultRow:
    """One injected fault and what it was taken for."""

    trial: str
    anchor: str
    model: str
    mark: Mark
    fault: str
    node: str
    colour: int | None
    moment: str
    injected_ns: int | None
    undone_ns: int | None
    expected: str
    seen: str
    answer: str


def parities(run: RunData) -> list[ParityRow]:
    """Parity trials in order."""
    return [_parity(trial) for trial in run.trials if trial.kind == "parity"]


def soaks(run: RunData) -> list[SoakRow]:
    """Soak trials in order."""
    return [_soak(run, trial) for trial in run.trials if trial.kind == "soak"]


def faults(run: RunData) -> list[FaultRow]:
    """Fault trials in order."""
    return [_fault(run, trial) for trial in run.trials if trial.kind == "fault"]


def _parity(trial: Trial) -> ParityRow:
    reference, seen = _group(trial.details, "reference"), _group(trial.details, "seen")
    one, other = str(reference.get("text", "")), str(seen.get("text", ""))
    pairs = zip(one, other, strict=False)
    alike = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    return ParityRow(
        trial=trial.id,
        anchor=slug(trial.id),
        model=trial.model,
        mark=mark(trial.outcome),
        compared=_count(trial.metrics, "tokens_compared"),
        equal=_count(trial.metrics, "tokens_equal"),
        gap=trial.metrics.get("largest_logprob_gap"),
        reference=one,
        reference_where=str(reference.get("where", "one node")),
        seen=other,
        seen_where=str(seen.get("where", "the backends")),
        alike=alike,
    )


def _soak(run: RunData, trial: Trial) -> SoakRow:
    mine = [r for r in run.requests if r.trial == trial.id and not r.warmup]
    rates = [((r.sent_ns - trial.started_ns) / 1e9, rate) for r in mine if (rate := decode_rate(r))]
    return SoakRow(
        trial=trial.id,
        anchor=slug(trial.id),
        model=trial.model,
        mark=mark(trial.outcome),
        took_s=(trial.ended_ns - trial.started_ns) / 1e9,
        requests=_count(trial.metrics, "requests") or len(mine),
        errors=[(text, _whole(count) or 0) for text, count in _group(trial.details, "errors").items()],
        failed=_count(trial.metrics, "errors") or 0,
        restarts=_count(trial.metrics, "restarts") or 0,
        drifts=_drifts(run, trial),
        rates=rates,
    )


def _drifts(run: RunData, trial: Trial) -> list[DriftRow]:
    rows = []
    if rate := _group(trial.details, "rate_drift"):
        rows.append(_drift("tokens/s", None, rate, "percent_per_hour"))
    for node, moved in _group(trial.details, "memory_drift").items():
        if isinstance(moved, dict):
            rows.append(_drift(str(node), colour_place(run, node), moved, "bytes_per_hour"))
    return rows


def _drift(what: str, colour: int | None, moved: dict[str, Any], key: str) -> DriftRow:
    return DriftRow(
        what=what,
        colour=colour,
        per_hour=_number(moved.get(key)) or 0.0,
        low=_number(moved.get("low")),
        high=_number(moved.get("high")),
        beyond_noise=bool(moved.get("beyond_noise")),
        percent=key.startswith("percent"),
    )


def _fault(run: RunData, trial: Trial) -> FaultRow:
    details = trial.details
    node = str(details.get("node") or "")
    seen = trial.diagnosis.failure_class.value if trial.diagnosis else ""
    return FaultRow(
        trial=trial.id,
        anchor=slug(trial.id),
        model=trial.model,
        mark=mark(trial.outcome),
        fault=str(details.get("fault") or trial.kind),
        node=node,
        colour=colour_place(run, node) if node in run.nodes else None,
        moment=str(details.get("moment") or ""),
        injected_ns=_whole(details.get("injected_ns")),
        undone_ns=_whole(details.get("undone_ns")),
        expected=trial.expected or "",
        seen=seen or ("not injected" if trial.outcome is Outcome.SKIPPED else "no diagnosis"),
        answer=trial.answer,
    )


def _group(details: dict[str, Any], key: str) -> dict[str, Any]:
    found = details.get(key)
    return found if isinstance(found, dict) else {}


def _count(metrics: dict[str, float], key: str) -> int | None:
    return int(metrics[key]) if key in metrics else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
