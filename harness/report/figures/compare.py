"""The figure of a comparison: each ratio with its interval, beside the line of no difference."""

from collections.abc import Sequence
from math import inf

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from harness.report.figures.svg import (
    ACCENT,
    BAD,
    GRID,
    INK,
    MUTED,
    Canvas,
    Picture,
    draw_picture,
    new_figure,
    short,
)
from harness.report.format import digits
from harness.runs.compare import Change

MOST_ROWS = 24
STYLES = {"worse": (BAD, "^"), "better": (ACCENT, "v"), "same": (MUTED, "o")}
"""Colour and marker of each verdict: distinct without colour too."""
TICKS: tuple[tuple[float, ...], ...] = (
    (0.9, 0.92, 0.94, 0.96, 0.98, 1, 1.02, 1.04, 1.06, 1.08, 1.1),
    (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.2, 1.3, 1.5, 2),
    (0.5, 0.7, 1, 1.4, 2),
    (0.01, 0.1, 0.25, 0.5, 1, 2, 4, 10, 100),
    (1e-9, 1e-6, 1e-3, 1, 1e3, 1e6, 1e9),
)
"""Scales of ratios, from fine to coarse."""
_ROW, _NARROW_ROW = 26, 40
"""Pixels of height; a phone has the label above its row."""


def compare_figure(changes: Sequence[Change]) -> Picture | None:
    """Ratios of the first changes that have an interval, in their order; None where none has."""
    drawn = [change for change in changes if _bounds(change)][:MOST_ROWS]
    if not drawn:
        return None
    several = len({change.run for change in drawn}) > 1

    def draw(canvas: Canvas) -> Figure:
        row = _NARROW_ROW if canvas.narrow else _ROW
        figure = new_figure(canvas, row * len(drawn) + 56)
        ax = figure.subplots()
        for place, change in enumerate(drawn):
            colour, marker = STYLES[change.verdict]
            ax.plot(_bounds(change) or (), [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
            ax.plot([change.difference.ratio], [place], color=colour, marker=marker, markersize=7)
        ax.axvline(1, color=INK, linewidth=1)
        ax.set_ylim(len(drawn) - 0.4, -0.9 if canvas.narrow else -0.6)
        low, high = _limits(drawn)
        ax.set_xscale("log")
        ax.set_xlim(low, high)
        ticks = _ticks(low, high)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        labels = [
            f"{change.figure.label}, {change.what}" + (f" ({change.run})" if several else "")
            for change in drawn
        ]
        if canvas.narrow:
            ax.set_yticks([])
            left = ax.get_yaxis_transform()
            for place, label in enumerate(labels):
                ax.text(0, place - 0.32, short(label, canvas, narrow=54), transform=left, fontsize=9.5)
        else:
            ax.set_yticks(range(len(drawn)), [short(label, canvas, 72) for label in labels])
        ax.grid(axis="y", visible=False)
        ax.grid(axis="x", color=GRID)
        ax.set_xlabel("after / before (ratio of medians, 95% interval)")
        return figure

    alt = "; ".join(
        f"{change.figure.label}, {change.what}: {digits(change.difference.ratio)}, {change.verdict}"
        for change in drawn
    )
    return draw_picture("compare", "Figures after over before", f"{alt}.", draw)


def _bounds(change: Change) -> tuple[float, float] | None:
    """Ends of the interval; None where there is none, or none that a logarithmic axis can show."""
    low, high = change.difference.low, change.difference.high
    return (low, high) if low is not None and high is not None and 0 < low <= high < inf else None


def _limits(drawn: Sequence[Change]) -> tuple[float, float]:
    ends = [end for change in drawn for end in _bounds(change) or ()]
    return min(*ends, 0.97) / 1.02, max(*ends, 1.03) * 1.02


def _ticks(low: float, high: float) -> list[float]:
    """Those of the finest scale that reaches to both limits and has nine or fewer between them."""
    for scale in TICKS:
        ticks = [tick for tick in scale if low <= tick <= high]
        if len(ticks) <= 9 and scale[0] <= low * 1.1 and high <= scale[-1] * 1.1:
            break
    return ticks
