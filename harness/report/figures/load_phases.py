"""The load figure: a bar per load, cut into phases."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.report.figures.svg import (
    INK,
    MUTED,
    PAPER,
    PHASES,
    Canvas,
    Picture,
    draw_picture,
    new_figure,
    short,
)
from harness.report.format import seconds
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

    alt = "; ".join(f"{row.label}: {seconds(row.load_s)}" for row in drawn)
    return draw_picture("load", "Load time in phases", f"{alt}.", draw)


def _load_bar(ax: Axes, place: int, row: LoadRow, canvas: Canvas, longest: float) -> None:
    left = 0.0
    height = 0.36 if canvas.narrow else 0.56
    for phase, length in row.phases or [("other", row.load_s or 0.0)]:
        colour = PHASES.get(phase, PHASES["other"])
        ax.barh(place, length, height, left=left, color=colour, edgecolor=PAPER, linewidth=1)
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
    phases = {
        phase if phase in PHASES else "other" for row in rows for phase, _ in row.phases or [("other", 0)]
    }
    return [(f"--p-{phase}", name) for phase, name in PHASE_NAMES.items() if phase in phases]
