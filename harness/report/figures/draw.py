"""The figures, each drawn for a wide page and for a phone."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.report.data import RunData
from harness.report.figures.axes import clock_axis
from harness.report.figures.svg import (
    ACCENT,
    BAD,
    GRID,
    INK,
    MUTED,
    PAPER,
    PHASES,
    SWAP,
    Canvas,
    Picture,
    new_figure,
    picture,
    short,
)
from harness.report.format import seconds
from harness.report.sections.failures import Moment
from harness.report.sections.loads import PHASE_NAMES, LoadRow


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
    return picture(
        "timeline",
        "Timeline of the run",
        f"{len(run.trials)} trials with {marks} signals, exits and faults.",
        draw,
    )


MARKERS: dict[str, dict[str, object]] = {
    "signal": {"marker": "v", "markersize": 8, "color": ACCENT},
    "fault": {"marker": "D", "markersize": 7, "color": SWAP},
    "exit": {"marker": "X", "markersize": 8, "color": INK},
}
