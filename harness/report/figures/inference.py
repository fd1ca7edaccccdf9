"""The inference figure: every value where there are few, ticks and a box where there are many."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from harness.report.figures.svg import ACCENT, INK, SWAP, Canvas, Picture, new_figure, picture, short
from harness.report.format import rate, seconds
from harness.report.sections.inference import StageRow
from harness.runs.statistics import Spread

FEW_DOTS = 24
MOST_TICKS = 160
Values = npt.NDArray[np.float64]


def inference_figure(stages: Sequence[StageRow]) -> Picture:
    """TTFT, gaps between tokens and decode rate: every value where there are few, medians as bars."""
    drawn = [s for s in stages if s.ttft]

    def draw(canvas: Canvas) -> Figure:
        row = 26 if canvas.narrow else 34
        if canvas.narrow:
            figure = new_figure(canvas, (row * len(drawn) + 66) * 3 + 14)
            axes = figure.subplots(3, 1)
        else:
            figure = new_figure(canvas, row * len(drawn) + 76)
            axes = figure.subplots(1, 3, sharey=True)
        panels: Sequence[tuple[str, Sequence[Sequence[float]]]] = (
            ("time to first token (s)", [held(s.ttft) for s in drawn]),
            ("gap between tokens, ITL (ms)", [[g * 1000 for g in s.gaps] for s in drawn]),
            ("decode rate (tokens/s)", [held(s.client) for s in drawn]),
        )
        for ax, (title, values) in zip(axes, panels, strict=True):
            _strips(ax, values, filled=True)
            ax.set_xlabel(title)
            _value_axis(ax, values, canvas)
            ax.set_ylim(len(drawn) - 0.4, -0.6)
            ax.set_yticks(range(len(drawn)))
            ax.set_yticklabels(
                [short(s.short_label if canvas.narrow else s.label, canvas, 26, 17) for s in drawn]
            )
            ax.tick_params(axis="y", labelcolor=INK)
        _strips(axes[2], [held(s.server) for s in drawn], filled=False)
        return figure

    spoken = "; ".join(
        f"{s.label}: median TTFT {seconds(middle(s.ttft))}, ITL {seconds(middle(s.itl))}, "
        f"{rate(middle(s.client))}"
        for s in drawn
    )
    return picture("inference", "Time to first token, gaps and decode rate", f"{spoken}.", draw)


def held(found: Spread | None) -> Sequence[float]:
    """Every value; none where there is no spread."""
    return found.values if found else ()


def middle(found: Spread | None) -> float | None:
    """The median, where there is one."""
    return found.median if found else None


def _strips(ax: Axes, rows: Sequence[Sequence[float]], *, filled: bool) -> None:
    """A dot per value where there are few; else a tick per value and a bar over the middle half."""
    for place, values in enumerate(rows):
        if not values:
            continue
        ordered = np.sort(np.asarray(values, dtype=float))
        few = len(ordered) <= FEW_DOTS
        if not filled:
            shown = ordered if few else ordered[[0, len(ordered) // 2, -1]]
            ax.scatter(
                shown,
                np.full(len(shown), place + 0.26),
                s=30,
                facecolors="none",
                edgecolors=SWAP,
                linewidths=1.3,
                marker="D",
            )
            continue
        if few:
            spread = 0.0 if len(ordered) == 1 else 0.17
            height = place + spread * np.sin(np.arange(len(ordered)) * 2.4)
            ax.scatter(ordered, height, s=26.0, color=ACCENT, alpha=0.75, linewidths=0)
        else:
            _ticks(ax, place, _thinned(ordered))
        centre = float(np.median(ordered))
        ax.plot([centre, centre], [place - 0.34, place + 0.34], color=INK, linewidth=1.8)


def _ticks(ax: Axes, place: int, values: Values) -> None:
    xs = np.column_stack([values, values, np.full(len(values), np.nan)]).ravel()
    ys = np.tile([place - 0.2, place + 0.2, np.nan], len(values))
    ax.plot(xs, ys, color=ACCENT, linewidth=0.6)
    low, high = np.quantile(values, [0.25, 0.75])
    ax.barh(place, high - low, 0.4, left=low, color=ACCENT, alpha=0.3, linewidth=0)


def _thinned(ordered: Values) -> Values:
    """At most ``MOST_TICKS`` of the sorted values, the extremes among them."""
    if len(ordered) <= MOST_TICKS:
        return ordered
    kept: Values = ordered[np.linspace(0, len(ordered) - 1, MOST_TICKS).round().astype(int)]
    return kept


def _value_axis(ax: Axes, rows: Sequence[Sequence[float]], canvas: Canvas) -> None:
    """From zero where values are alike; logarithmic where the slowest is 25 times the fastest."""
    every = [v for values in rows for v in values if v > 0]
    if every and max(every) > 25 * min(every):
        ax.set_xscale("log")
        ax.set_xlim(min(every) / 1.6, max(every) * 1.6)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_formatter(FuncFormatter(lambda _v, _p: ""))
        return
    ax.set_xlim(0, max(every, default=1.0) * 1.12)
    ax.xaxis.set_major_locator(MaxNLocator(4 if canvas.narrow else 5))
