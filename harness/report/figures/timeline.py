"""Figures over the time of the whole run: trials and events, memory and swap, pressure."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from harness.report.data import NodeSeries, Numbers, RunData
from harness.report.figures.svg import (
    ACCENT,
    BAD,
    BAND,
    GRID,
    INK,
    MUTED,
    SWAP,
    Canvas,
    Picture,
    draw_picture,
    new_figure,
    node_colour,
    short,
)
from harness.report.format import GIB, digits, percent, size, swap
from harness.report.sections.failures import Moment
from harness.report.sections.memory import PeakRow, PressureRow, envelope, node_swap

MARKERS: dict[str, dict[str, object]] = {
    "signal": {"marker": "v", "markersize": 8, "color": ACCENT},
    "fault": {"marker": "D", "markersize": 7, "color": SWAP},
    "exit": {"marker": "X", "markersize": 8, "color": INK},
}


def timeline_figure(run: RunData, moments: Sequence[Moment]) -> Picture:
    """Trials as bars over the run, with the signals sent and the exits seen."""

    def draw(canvas: Canvas) -> Figure:
        step = 34 if canvas.narrow else 26
        figure = new_figure(canvas, step * len(run.trials) + 58)
        ax = figure.subplots()
        for place, trial in enumerate(run.trials):
            start = (trial.started_ns - run.start_ns) / 1e9
            length = (trial.ended_ns - trial.started_ns) / 1e9
            bad = trial.outcome.value == "failed"
            ax.barh(place, length, 0.42, left=start, color=BAD if bad else GRID, linewidth=0)
            if canvas.narrow:
                label = f"{place + 1}  {short(trial.id, canvas, narrow=40)}"
                ax.text(0, place - 0.24, label, va="bottom", ha="left", fontsize=10)
        rows = {trial.id: place for place, trial in enumerate(run.trials)}
        for moment in moments:
            style = MARKERS.get(moment.kind)
            if style and moment.trial in rows:
                when = (moment.time_ns - run.start_ns) / 1e9
                lift = {"signal": 0.33, "fault": -0.33}.get(moment.kind, 0.0)
                ax.plot(when, rows[moment.trial] - lift, linestyle="none", clip_on=False, **style)  # type: ignore[arg-type]
        ax.set_ylim(len(run.trials) - 0.4, -0.75 if canvas.narrow else -0.6)
        clock_axis(ax, run, canvas)
        ax.set_yticks([] if canvas.narrow else range(len(run.trials)))
        if not canvas.narrow:
            ax.set_yticklabels([f"{n}  {short(t.id, canvas)}" for n, t in enumerate(run.trials, 1)])
            ax.tick_params(axis="y", labelcolor=INK)
        ax.grid(axis="y", visible=False)
        return figure

    marks = sum(m.kind in MARKERS for m in moments)
    return draw_picture(
        "timeline",
        "Timeline of the run",
        f"{len(run.trials)} trials with {marks} signals, exits and faults.",
        draw,
    )


def memory_figure(run: RunData, rows: Sequence[PeakRow]) -> Picture:
    """Used and available memory and swap of each node over the run, trials as bands."""
    top = max(row.total for row in rows) / GIB

    def draw(canvas: Canvas) -> Figure:
        figure, axes = _rows(run, [row.node for row in rows], canvas, 92, 108)
        for ax, row in zip(axes, rows, strict=True):
            _memory_row(ax, run, row, canvas)
        axes[-1].set_ylim(0, top * 1.25)
        axes[-1].yaxis.set_major_locator(MaxNLocator(3))
        figure.supylabel("memory (GiB)", fontsize=11.5)
        return figure

    alt = "; ".join(
        f"{row.node}: peak {size(row.peak_used)} of {size(row.total)}, node swap {swap(row.node_swap)}"
        for row in rows
    )
    return draw_picture("memory", "Memory and swap of each node over time", f"{alt}.", draw)


def _memory_row(ax: Axes, run: RunData, row: PeakRow, canvas: Canvas) -> None:
    series, colour = run.samples[row.node], node_colour(run.nodes, row.node)
    _fill(ax, run, series, series.values["used"] / GIB, canvas, colour)
    spans = _spans(canvas)
    free = envelope(series, series.values["available"], run.start_ns, spans)
    swapped = envelope(series, node_swap(series), run.start_ns, spans)
    ax.plot(free.seconds, free.low / GIB, color=MUTED, linewidth=1.1, linestyle=(0, (1, 1.6)))
    ax.plot(swapped.seconds, swapped.high / GIB, color=SWAP, linewidth=1.6, linestyle=(0, (4, 1.6)))
    ax.axhline(row.total / GIB, color=INK, linewidth=0.8)
    if row.swap_began_ns is not None:
        ax.plot(
            (row.swap_began_ns - run.start_ns) / 1e9, 0, marker="^", markersize=9, color=SWAP, clip_on=False
        )
    _title(ax, f"{short(row.node, canvas)}  (of {digits(row.total / GIB)} GiB)", colour)


def pressure_figure(run: RunData, rows: Sequence[PressureRow]) -> Picture | None:
    """Share of time that tasks of each node waited for memory and io; None where no node reports it."""
    drawn = [row for row in rows if row.highest["memory_some"] is not None]
    if not drawn:
        return None
    top = max(max(row.highest["memory_some"] or 0, row.highest["io_some"] or 0) for row in drawn)

    def draw(canvas: Canvas) -> Figure:
        figure, axes = _rows(run, [row.node for row in drawn], canvas, 70, 80)
        for ax, row in zip(axes, drawn, strict=True):
            series, colour = run.samples[row.node], node_colour(run.nodes, row.node)
            _fill(ax, run, series, series.values["memory_some"], canvas, colour)
            for name, shade, dash in (("memory_full", SWAP, 4), ("io_some", MUTED, 1)):
                line = envelope(series, series.values[name], run.start_ns, _spans(canvas))
                ax.plot(line.seconds, line.high, color=shade, linewidth=1.3, linestyle=(0, (dash, 1.6)))
            _title(ax, short(row.node, canvas), colour)
        axes[-1].set_ylim(0, min(100.0, max(5.0, top * 1.25)))
        axes[-1].yaxis.set_major_locator(MaxNLocator(3))
        figure.supylabel("time waited (% of 10 s)", fontsize=11.5)
        return figure

    def share(row: PressureRow, figure: str) -> str:
        return percent((row.highest[figure] or 0) / 100, signed=False)

    alt = "; ".join(
        f"{row.node}: a task waited for memory up to {share(row, 'memory_some')} of the time, "
        f"every task up to {share(row, 'memory_full')}"
        for row in drawn
    )
    return draw_picture("pressure", "Pressure on each node over time", f"{alt}.", draw)


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


def _fill(ax: Axes, run: RunData, series: NodeSeries, values: Numbers, canvas: Canvas, colour: str) -> None:
    """A series as a line over its area, its lowest values as a thinner line where spans were joined."""
    line = envelope(series, values, run.start_ns, _spans(canvas))
    ax.fill_between(line.seconds, 0, line.high, color=colour, alpha=0.22, linewidth=0)
    ax.plot(line.seconds, line.high, color=colour, linewidth=1.6)
    if not np.array_equal(line.low, line.high):
        ax.plot(line.seconds, line.low, color=colour, linewidth=0.7)


def _spans(canvas: Canvas) -> int:
    return 170 if canvas.narrow else 420


def _title(ax: Axes, text: str, colour: str) -> None:
    label = ax.set_title(text, loc="left", fontsize=11.5, fontweight="bold", color=colour, pad=3)
    label.set_in_layout(True)


def length_s(run: RunData) -> float:
    """Length of the run in seconds, at least one."""
    return max((run.end_ns - run.start_ns) / 1e9, 1.0)


def clock_axis(ax: Axes, run: RunData, canvas: Canvas) -> None:
    """Time since the start of the run, on whole minutes or hours."""
    length = length_s(run)
    ax.set_xlim(0, length)
    ax.set_xlabel(f"time since the start of the run ({'h:min:s' if length >= 3600 else 'min:s'})")
    ax.xaxis.set_major_formatter(FuncFormatter(_clock))
    ax.xaxis.set_major_locator(_locator(length, 4 if canvas.narrow else 8))


def trial_bands(ax: Axes, run: RunData, canvas: Canvas, *, labelled: bool) -> None:
    """Every second trial shaded, each numbered as in the verdict, where there is room for a number."""
    scale = canvas.width / max(length_s(run), 1e-9)
    for number, trial in enumerate(run.trials, 1):
        start = (trial.started_ns - run.start_ns) / 1e9
        end = (trial.ended_ns - run.start_ns) / 1e9
        if number % 2:
            ax.axvspan(start, end, color=BAND, linewidth=0, zorder=0)
        ax.axvline(start, color=GRID, linewidth=0.8, zorder=0)
        if labelled and (end - start) * scale > 16:
            ax.annotate(
                str(number),
                ((start + end) / 2, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, -2),
                textcoords="offset points",
                ha="center",
                va="top",
                color=MUTED,
                fontsize=10,
            )


def _clock(value: float, _place: object = None) -> str:
    total = round(value)
    if total >= 3600:
        return f"{total // 3600}:{total % 3600 // 60:02d}:{total % 60:02d}"
    return f"{total // 60}:{total % 60:02d}"


def _locator(span: float, most: int) -> MultipleLocator:
    """At most ``most`` ticks, on whole seconds, minutes or hours."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800)
    return MultipleLocator(next((s for s in steps if span / s <= most), 86400))
