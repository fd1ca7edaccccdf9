"""Section 4: memory, node swap and pressure of each node over time."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.contracts.run_records import Trial
from harness.report.data import OPTIONAL, NodeSeries, Numbers, RunData
from harness.report.sections.cluster import colour_place
from harness.runs.metrics import SWAP_NOISE_BYTES


@dataclass(frozen=True)
class TrialAt:
    """A trial by its number in the verdict."""

    number: int
    id: str


@dataclass(frozen=True)
class PeakRow:
    """One node's extremes over the run."""

    node: str
    colour: int
    total: float
    peak_used: float
    peak_used_ns: int
    peak_used_trial: TrialAt | None
    least_available: float
    node_swap: float
    """Most swap that the node used above its first sample, bytes."""
    swap_began_ns: int | None
    """First sample with more node swap than the noise limit."""
    swap_began_trial: TrialAt | None
    major_faults: float
    samples: int
    longest_gap_s: float


@dataclass(frozen=True)
class Envelope:
    """A series cut into equal spans of time, each with its lowest and highest value."""

    seconds: npt.NDArray[np.float64]
    """Middle of each span, since the start of the run."""
    low: Numbers
    high: Numbers


def peak_rows(run: RunData) -> list[PeakRow]:
    """Extremes of every node that was sampled."""
    return [_peak(run, series) for series in run.samples.values() if len(series.time_ns)]


def _peak(run: RunData, series: NodeSeries) -> PeakRow:
    used, swap_growth = series.values["used"], node_swap(series)
    top = int(np.nanargmax(used))
    swapping = np.flatnonzero(swap_growth > SWAP_NOISE_BYTES)
    began = int(series.time_ns[swapping[0]]) if len(swapping) else None
    faults = series.values["major_faults"]
    return PeakRow(
        node=series.node,
        colour=colour_place(run, series.node),
        total=float(np.nanmax(series.values["total"])),
        peak_used=float(used[top]),
        peak_used_ns=int(series.time_ns[top]),
        peak_used_trial=trial_at(run.trials, int(series.time_ns[top])),
        least_available=float(np.nanmin(series.values["available"])),
        node_swap=float(np.nanmax(swap_growth)),
        swap_began_ns=began,
        swap_began_trial=trial_at(run.trials, began) if began is not None else None,
        major_faults=float(np.nanmax(faults) - np.nanmin(faults)),
        samples=len(series.time_ns),
        longest_gap_s=float(np.diff(series.time_ns).max() / 1e9) if len(series.time_ns) > 1 else 0.0,
    )


def node_swap(series: NodeSeries) -> Numbers:
    """Swap that the node used above its first sample, bytes."""
    swap = series.values["swap"]
    growth: Numbers = np.maximum(swap - swap[0], 0.0)
    return growth


def trial_at(trials: list[Trial], time_ns: int) -> TrialAt | None:
    """The trial that was going on at a moment; None between trials."""
    for number, trial in enumerate(trials, 1):
        if trial.started_ns <= time_ns <= trial.ended_ns:
            return TrialAt(number, trial.id)
    return None


def envelope(series: NodeSeries, values: Numbers, start_ns: int, spans: int) -> Envelope:
    """Values of a node in at most ``spans`` spans, so that a peak of one second stays visible.

    A series that is short enough keeps every value.
    """
    times = (series.time_ns - start_ns) / 1e9
    if len(values) <= spans:
        return Envelope(times, values, values)
    edges = np.linspace(times[0], times[-1], spans + 1)
    firsts = np.unique(np.searchsorted(times, edges[:-1]))
    low = np.fmin.reduceat(values, firsts)
    high = np.fmax.reduceat(values, firsts)
    ends = np.append(firsts[1:], len(times)) - 1
    return Envelope((times[firsts] + times[ends]) / 2, low, high)


FAULT_WINDOW_S = 10
"""Faults are counted over this long: a single second says little."""


@dataclass(frozen=True)
class PressureRow:
    """The worst of one node; a figure is None where its samples lack it."""

    node: str
    colour: int
    cpus: int | None
    highest: dict[str, float | None]
    """Highest value of each optional figure of ``OPTIONAL``, in its unit."""
    worst_ns: int | None
    """When the waiting for memory was longest; without pressure figures, when faults were most."""
    worst_trial: TrialAt | None
    faults_per_s: float
    clock_offset: float | None
    """Seconds from the head node's clock at their largest."""


def pressure_rows(run: RunData) -> list[PressureRow]:
    """The worst of every node that was sampled."""
    cpus = {node.name: node.cpus for node in run.manifest.nodes}
    return [
        _pressure(run, series, cpus.get(series.node))
        for series in run.samples.values()
        if len(series.time_ns)
    ]


def _pressure(run: RunData, series: NodeSeries, cpus: int | None) -> PressureRow:
    rates = major_fault_rates(series)
    waited = series.values.get("memory_some")
    decides = waited if waited is not None else rates
    worst = int(series.time_ns[int(np.nanargmax(decides))]) if _highest(decides) else None
    return PressureRow(
        node=series.node,
        colour=colour_place(run, series.node),
        cpus=cpus,
        highest={figure: _highest(series.values.get(figure)) for figure in OPTIONAL.values()},
        worst_ns=worst,
        worst_trial=trial_at(run.trials, worst) if worst is not None else None,
        faults_per_s=_highest(rates) or 0.0,
        clock_offset=_highest(series.values.get("clock_offset"), np.abs),
    )


def major_fault_rates(series: NodeSeries) -> Numbers:
    """Major faults per second at each sample, over the time since about ``FAULT_WINDOW_S`` before it.

    A counter that fell (a reboot) gives 0 there.
    """
    times, faults = series.time_ns / 1e9, series.values["major_faults"]
    before = np.searchsorted(times, times - FAULT_WINDOW_S)
    before = np.minimum(before, np.maximum(np.arange(len(times)) - 1, 0))
    spent = times - times[before]
    grown = np.maximum(faults - faults[before], 0.0)
    rates: Numbers = np.divide(grown, spent, out=np.zeros(len(times)), where=spent > 0)
    return rates


def _highest(values: Numbers | None, key: Callable[[Numbers], Numbers] = np.asarray) -> float | None:
    """The value that is largest by ``key``; None where there is none."""
    if values is None or np.all(np.isnan(values)):
        return None
    return float(values[int(np.nanargmax(key(values)))])
