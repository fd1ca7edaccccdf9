"""Section 4, continued: what pressed on each node: waiting, faults, load, disk, and what rpc-server held."""

from dataclasses import dataclass

import numpy as np

from harness.report.data import RunData
from harness.report.sections.cluster import colour_place
from harness.report.sections.memory import TrialAt, trial_at
from harness.report.series import NodeSeries, Numbers

FAULT_WINDOW_S = 10
"""Faults are counted over this long: a single second says little."""


@dataclass(frozen=True)
class PressureRow:
    """The worst of one node; None where its samples do not tell."""

    node: str
    colour: int
    memory_some: float | None
    """Highest ``avg10`` of /proc/pressure/memory or of the machine's cgroup, per cent."""
    memory_full: float | None
    io_some: float | None
    io_full: float | None
    worst_ns: int | None
    """When the waiting for memory was longest; where nothing tells of it, when faults were most."""
    worst_trial: TrialAt | None
    faults_per_s: float
    load1: float | None
    cpus: int | None
    disk_read: float | None
    """Highest bytes/s."""
    disk_written: float | None
    rpc_rss: float | None
    """Highest bytes of the node's rpc-server."""
    rpc_swap: float | None
    gpu_used: float | None
    gpu_total: float | None
    clock_offset: float | None
    """Seconds from the head node's clock at their largest."""


def pressures(run: RunData) -> list[PressureRow]:
    """The worst of every node that was sampled."""
    cpus = {node.name: node.cpus for node in run.manifest.nodes}
    return [
        _pressure(run, series, cpus.get(series.node))
        for series in run.samples.values()
        if len(series.time_ns)
    ]


def _pressure(run: RunData, series: NodeSeries, cpus: int | None) -> PressureRow:
    rates = fault_rates(series)
    waited = series.known("memory_some")
    decides = waited if waited is not None else rates
    worst = int(series.time_ns[int(np.nanargmax(decides))]) if _highest(decides) else None
    return PressureRow(
        node=series.node,
        colour=colour_place(run, series.node),
        memory_some=_highest(waited),
        memory_full=_highest(series.known("memory_full")),
        io_some=_highest(series.known("io_some")),
        io_full=_highest(series.known("io_full")),
        worst_ns=worst,
        worst_trial=trial_at(run.trials, worst) if worst is not None else None,
        faults_per_s=_highest(rates) or 0.0,
        load1=_highest(series.known("load1")),
        cpus=cpus,
        disk_read=_highest(series.known("disk_read")),
        disk_written=_highest(series.known("disk_written")),
        rpc_rss=_highest(series.known("rpc_rss")) or None,
        rpc_swap=_highest(series.known("rpc_swap")),
        gpu_used=_highest(series.known("gpu_used")),
        gpu_total=_highest(series.known("gpu_total")),
        clock_offset=_farthest(series.known("clock_offset")),
    )


def fault_rates(series: NodeSeries) -> Numbers:
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


def _highest(values: Numbers | None) -> float | None:
    if values is None or not len(values) or np.all(np.isnan(values)):
        return None
    return float(np.nanmax(values))


def _farthest(values: Numbers | None) -> float | None:
    if values is None or not len(values) or np.all(np.isnan(values)):
        return None
    return float(values[int(np.nanargmax(np.abs(values)))])
