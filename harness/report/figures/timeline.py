"""Figures with a row per node over the whole run: memory and swap, and pressure."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.report.data import RunData
from harness.report.figures.axes import clock_axis, trial_bands
from harness.report.figures.svg import (
    INK,
    MUTED,
    SWAP,
    Canvas,
    Picture,
    new_figure,
    node_colour,
    picture,
    short,
)
from harness.report.format import GIB, digits, percent, size
from harness.report.sections.memory import PeakRow, envelope
from harness.report.sections.pressure import PressureRow
from harness.report.series import NodeSeries


def memory_figure(run: RunData, rows: Sequence[PeakRow]) -> Picture:
    """Used, available and swapped memory of each node over the run, trials as bands."""
    top = max(row.total for row in rows) / GIB

    def draw(canvas: Canvas) -> Figure:
        figure, axes = _rows(run, [row.node for row in rows], canvas, 92, 108)
        for ax, row in zip(axes, rows, strict=True):
            _memory_row(ax, run, row, canvas)
        axes[-1].set_ylim(0, top * 1.25)
        axes[-1].yaxis.set_major_locator(MaxNLocator(3))
        figure.supylabel("memory (GiB)", fontsize=11.5)
        return figure

    spoken = "; ".join(
        f"{row.node}: peak {size(row.peak_used)} of {size(row.total)}, peak swap {size(row.peak_swap)}"
        for row in rows
    )
    return picture("memory", "Memory and swap of each node over time", f"{spoken}.", draw)


def _memory_row(ax: Axes, run: RunData, row: PeakRow, canvas: Canvas) -> None:
    series, colour = run.samples[row.node], node_colour(run.nodes, row.node)
    _filled(ax, run, series, "used", canvas, colour, unit=GIB)
    spans = _spans(canvas)
    free = envelope(series, "available", run.start_ns, spans)
    swap = envelope(series, "swap", run.start_ns, spans)
    ax.plot(free.seconds, free.low / GIB, color=MUTED, linewidth=1.1, linestyle=(0, (1, 1.6)))
    ax.plot(swap.seconds, swap.high / GIB, color=SWAP, linewidth=1.6, linestyle=(0, (4, 1.6)))
    ax.axhline(row.total / GIB, color=INK, linewidth=0.8)
    if row.swap_began_ns is not None:
        ax.plot(
            (row.swap_began_ns - run.start_ns) / 1e9, 0, marker="^", markersize=9, color=SWAP, clip_on=False
        )
    _title(ax, f"{short(row.node, canvas)}  (of {digits(row.total / GIB)} GiB)", colour)


def pressure_figure(run: RunData, rows: Sequence[PressureRow]) -> Picture | None:
    """Share of time that tasks of each node waited for memory and io; None where no node tells."""
    told = [row for row in rows if row.memory_some is not None]
    if not told:
        return None
    top = max(max(row.memory_some or 0, row.io_some or 0) for row in told)

    def draw(canvas: Canvas) -> Figure:
        figure, axes = _rows(run, [row.node for row in told], canvas, 70, 80)
        for ax, row in zip(axes, told, strict=True):
            series, colour = run.samples[row.node], node_colour(run.nodes, row.node)
            _filled(ax, run, series, "memory_some", canvas, colour)
            for figure_name, style in (("memory_full", (0, (4, 1.6))), ("io_some", (0, (1, 1.6)))):
                line = envelope(series, figure_name, run.start_ns, _spans(canvas))
                shade = SWAP if figure_name == "memory_full" else MUTED
                ax.plot(line.seconds, line.high, color=shade, linewidth=1.3, linestyle=style)
            _title(ax, short(row.node, canvas), colour)
        axes[-1].set_ylim(0, min(100.0, max(5.0, top * 1.25)))
        axes[-1].yaxis.set_major_locator(MaxNLocator(3))
        figure.supylabel("time waited (% of 10 s)", fontsize=11.5)
        return figure

    spoken = "; ".join(
        f"{row.node}: a task waited for memory up to {percent((row.memory_some or 0) / 100, signed=False)}"
        f" of the time, every task up to {percent((row.memory_full or 0) / 100, signed=False)}"
        for row in told
    )
    return picture("pressure", "Pressure on each node over time", f"{spoken}.", draw)


def _rows(
    run: RunData, names: list[str], canvas: Canvas, narrow: int, wide: int
) -> tuple[Figure, list[Axes]]:
    """A row of axes per node under one another, the trials behind them, one time axis below."""
    row = narrow if canvas.narrow else wide
    figure = new_figure(canvas, row * len(names) + 56)
    axes = list(figure.subplots(len(names), 1, sharex=True, sharey=True, squeeze=False)[:, 0])
    for ax in axes:
        trial_bands(ax, run, canvas, labelled=ax is axes[0])
        ax.grid(axis="x", visible=False)
    clock_axis(axes[-1], run, canvas)
    return figure, axes


def _filled(
    ax: Axes, run: RunData, series: NodeSeries, name: str, canvas: Canvas, colour: str, unit: float = 1
) -> None:
    """A series as a line over its area, its lowest values as a thinner line where spans were joined."""
    line = envelope(series, name, run.start_ns, _spans(canvas))
    ax.fill_between(line.seconds, 0, line.high / unit, color=colour, alpha=0.22, linewidth=0)
    ax.plot(line.seconds, line.high / unit, color=colour, linewidth=1.6)
    if not np.array_equal(line.low, line.high):
        ax.plot(line.seconds, line.low / unit, color=colour, linewidth=0.7)


def _spans(canvas: Canvas) -> int:
    return 170 if canvas.narrow else 420


def _title(ax: Axes, text: str, colour: str) -> None:
    label = ax.set_title(text, loc="left", fontsize=11.5, fontweight="bold", color=colour, pad=3)
    label.set_in_layout(True)
