"""Section 4: memory and swap of each node over time."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.contracts.run_records import Trial
from harness.report.data import RunData
from harness.report.format import MIB
from harness.report.sections.cluster import colour_place
from harness.report.series import NodeSeries, Numbers

SWAP_BEGINS_BYTES = 4 * MIB
"""Growth over the first sample that counts as swapping: less is the system's own housekeeping."""


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
    peak_swap: float
    swap_began_ns: int | None
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


def peaks(run: RunData) -> list[PeakRow]:
    """Extremes of every node that was sampled."""
    return [_peak(run, series) for series in run.samples.values() if len(series.time_ns)]


def _peak(run: RunData, series: NodeSeries) -> PeakRow:
    used, swap = series.values["used"], series.values["swap"]
    top = int(np.nanargmax(used))
    swapping = np.flatnonzero(swap > swap[0] + SWAP_BEGINS_BYTES)
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
        peak_swap=float(np.nanmax(swap)),
        swap_began_ns=began,
        swap_began_trial=trial_at(run.trials, began) if began is not None else None,
        major_faults=float(np.nanmax(faults) - np.nanmin(faults)),
        samples=len(series.time_ns),
        longest_gap_s=float(np.diff(series.time_ns).max() / 1e9) if len(series.time_ns) > 1 else 0.0,
    )


def trial_at(trials: list[Trial], time_ns: int) -> TrialAt | None:
    """The trial that was going on at a moment; None between trials."""
    for number, trial in enumerate(trials, 1):
        if trial.started_ns <= time_ns <= trial.ended_ns:
            return TrialAt(number, trial.id)
    return None


def envelope(series: NodeSeries, figure: str, start_ns: int, spans: int) -> Envelope:
    """``figure`` of a node in at most ``spans`` spans, so that a peak of one second stays in sight.

    A series that is short enough keeps every value.
    """
    values = series.values[figure]
    times = (series.time_ns - start_ns) / 1e9
    if len(values) <= spans:
        return Envelope(times, values, values)
    edges = np.linspace(times[0], times[-1], spans + 1)
    firsts = np.unique(np.searchsorted(times, edges[:-1]))
    low = np.fmin.reduceat(values, firsts)
    high = np.fmax.reduceat(values, firsts)
    ends = np.append(firsts[1:], len(times)) - 1
    return Envelope((times[firsts] + times[ends]) / 2, low, high)
