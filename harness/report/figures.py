"""The figures, each drawn for a wide page and for a phone."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from harness.report.load import RunData
from harness.report.numbers import GIB, digits, seconds, size
from harness.report.sections.failures import Moment
from harness.report.sections.loads import PHASE_NAMES, LoadRow
from harness.report.sections.memory import envelope, peaks
from harness.report.svg import (
    ACCENT,
    BAD,
    BAND,
    GRID,
    INK,
    MUTED,
    PAPER,
    PHASES,
    SWAP,
    Canvas,
    Picture,
    new_figure,
    node_colour,
    picture,
    short,
)


def memory_figure(run: RunData) -> Picture:
    """Used, available and swapped memory of each node over the run, trials as bands."""

    def draw(canvas: Canvas) -> Figure:
        names = [n for n in run.samples if len(run.samples[n].time_ns)]
        row = 92 if canvas.narrow else 108
        figure = new_figure(canvas, row * len(names) + 56)
        axes = figure.subplots(len(names), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        top = max(float(np.nanmax(run.samples[n].values["total"])) for n in names) / GIB
        for ax, name in zip(axes, names, strict=True):
            _bands(ax, run, canvas, labelled=ax is axes[0])
            _memory_row(ax, run, name, canvas)
        axes[-1].set_ylim(0, top * 1.25)
        axes[-1].yaxis.set_major_locator(MaxNLocator(3))
        axes[-1].set_xlim(0, _end(run))
        axes[-1].set_xlabel(_clock_label(run))
        axes[-1].xaxis.set_major_formatter(FuncFormatter(_clock))
        axes[-1].xaxis.set_major_locator(_time_locator(_end(run), 4 if canvas.narrow else 9))
        figure.supylabel("memory (GiB)", fontsize=11.5)
        return figure

    spoken = "; ".join(
        f"{p.node}: peak {size(p.peak_used)} of {size(p.total)}, peak swap {size(p.peak_swap)}"
        for p in peaks(run)
    )
    return picture("memory", "Memory and swap of each node over time", f"{spoken}.", draw)


def _memory_row(ax: Axes, run: RunData, name: str, canvas: Canvas) -> None:
    series, colour = run.samples[name], node_colour(run.nodes, name)
    spans = 170 if canvas.narrow else 420
    used = envelope(series, "used", run.start_ns, spans)
    free = envelope(series, "available", run.start_ns, spans)
    swap = envelope(series, "swap", run.start_ns, spans)
    ax.fill_between(used.seconds, 0, used.high / GIB, color=colour, alpha=0.22, linewidth=0)
    ax.plot(used.seconds, used.high / GIB, color=colour, linewidth=1.6)
    if not np.array_equal(used.low, used.high):
        ax.plot(used.seconds, used.low / GIB, color=colour, linewidth=0.7)
    ax.plot(free.seconds, free.low / GIB, color=MUTED, linewidth=1.1, linestyle=(0, (1, 1.6)))
    ax.plot(swap.seconds, swap.high / GIB, color=SWAP, linewidth=1.6, linestyle=(0, (4, 1.6)))
    limit = float(np.nanmax(series.values["total"])) / GIB
    ax.axhline(limit, color=INK, linewidth=0.8)
    title = f"{short(name, canvas)}  (of {digits(limit)} GiB)"
    label = ax.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=colour, pad=3)
    label.set_in_layout(True)
    ax.grid(axis="x", visible=False)


def _bands(ax: Axes, run: RunData, canvas: Canvas, *, labelled: bool) -> None:
    """Every second trial shaded, each numbered as in the verdict, where there is room for a number."""
    scale = canvas.width / max(_end(run), 1e-9)
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


def load_figure(rows: Sequence[LoadRow]) -> Picture:
    """A bar per load in its phases, with the floors as marks."""
    drawn = [row for row in rows if row.load_s]

    def draw(canvas: Canvas) -> Figure:
        step = 58 if canvas.narrow else 44
        figure = new_figure(canvas, step * len(drawn) + 62)
        ax = figure.subplots()
        longest = max(row.load_s or 0 for row in drawn)
        for place, row in enumerate(drawn):
            _load_bar(ax, place, row, canvas, longest)
        ax.set_ylim(len(drawn) - 0.45, -0.62)
        ax.set_xlim(0, longest * (1.22 if canvas.narrow else 1.12))
        ax.set_xlabel("time since the coordinator was started (s)")
        ax.xaxis.set_major_locator(MaxNLocator(4 if canvas.narrow else 8))
        ax.set_yticks([] if canvas.narrow else range(len(drawn)))
        if not canvas.narrow:
            ax.set_yticklabels([short(row.label, canvas) for row in drawn])
            ax.tick_params(axis="y", labelcolor=INK, labelsize=11.5)
        ax.grid(axis="y", visible=False)
        return figure

    spoken = "; ".join(f"{row.label}: {seconds(row.load_s)}" for row in drawn)
    return picture("load", "Load time in phases", f"{spoken}.", draw)


def _load_bar(ax: Axes, place: int, row: LoadRow, canvas: Canvas, longest: float) -> None:
    left = 0.0
    height = 0.36 if canvas.narrow else 0.56
    for phase, length in row.phases or [("other", row.load_s or 0.0)]:
        known = phase if phase in PHASES else "other"
        ax.barh(place, length, height, left=left, color=PHASES[known], edgecolor=PAPER, linewidth=1)
        left += length
    ax.text(left, place, f" {seconds(row.load_s)}", va="center", ha="left", fontweight="bold")
    if canvas.narrow:
        ax.text(0, place - 0.24, short(row.label, canvas, narrow=34), va="bottom", ha="left")
    for name, floor in row.floors:
        if floor <= longest * 1.2:
            ax.plot([floor, floor], [place - 0.36, place + 0.36], color=INK, linewidth=1.4)
            ax.text(floor, place + 0.37, f"{name} floor", va="top", ha="center", fontsize=9, color=MUTED)


def phase_legend(rows: Sequence[LoadRow]) -> list[tuple[str, str]]:
    """CSS variable and name of each phase that the loads have."""
    seen = {
        phase if phase in PHASES else "other" for row in rows for phase, _ in row.phases or [("other", 0)]
    }
    return [(f"--p-{phase}", name) for phase, name in PHASE_NAMES.items() if phase in seen]


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
                lift = 0.33 if moment.kind == "signal" else 0.0
                ax.plot(when, rows[moment.trial] - lift, linestyle="none", clip_on=False, **style)  # type: ignore[arg-type]
        ax.set_ylim(len(run.trials) - 0.4, -0.75 if canvas.narrow else -0.6)
        ax.set_xlim(0, _end(run))
        ax.set_xlabel(_clock_label(run))
        ax.xaxis.set_major_formatter(FuncFormatter(_clock))
        ax.xaxis.set_major_locator(_time_locator(_end(run), 4 if canvas.narrow else 8))
        ax.set_yticks([] if canvas.narrow else range(len(run.trials)))
        if not canvas.narrow:
            ax.set_yticklabels([f"{n}  {short(t.id, canvas)}" for n, t in enumerate(run.trials, 1)])
            ax.tick_params(axis="y", labelcolor=INK)
        ax.grid(axis="y", visible=False)
        return figure

    marks = sum(m.kind in MARKERS for m in moments)
    return picture(
        "timeline", "Timeline of the run", f"{len(run.trials)} trials with {marks} signals and exits.", draw
    )


MARKERS: dict[str, dict[str, object]] = {
    "signal": {"marker": "v", "markersize": 8, "color": ACCENT},
    "exit": {"marker": "X", "markersize": 8, "color": INK},
}


def _end(run: RunData) -> float:
    return max((run.end_ns - run.start_ns) / 1e9, 1.0)


def _clock_label(run: RunData) -> str:
    return f"time since the start of the run ({'h:min:s' if _end(run) >= 3600 else 'min:s'})"


def _clock(value: float, _place: object = None) -> str:
    total = round(value)
    if total >= 3600:
        return f"{total // 3600}:{total % 3600 // 60:02d}:{total % 60:02d}"
    return f"{total // 60}:{total % 60:02d}"


def _time_locator(span: float, most: int) -> MultipleLocator:
    """At most ``most`` ticks, on whole seconds, minutes or hours."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800)
    return MultipleLocator(next((s for s in steps if span / s <= most), 86400))
