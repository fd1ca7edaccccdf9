"""Figures of the answers: each stage's values, medians by length and concurrency, rates over a soak."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from harness.report.figures.svg import (
    ACCENT,
    GRID,
    INK,
    MUTED,
    SWAP,
    Canvas,
    Picture,
    draw_picture,
    new_figure,
    short,
)
from harness.report.format import rate, seconds
from harness.report.sections.inference import SoakRow, StageRow
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
            ("time to first token (s)", [_spread_values(s.ttft) for s in drawn]),
            ("gap between tokens, ITL (ms)", [[g * 1000 for g in s.gaps] for s in drawn]),
            ("decode rate (tokens/s)", [_spread_values(s.client) for s in drawn]),
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
        _strips(axes[2], [_spread_values(s.server) for s in drawn], filled=False)
        return figure

    alt = "; ".join(
        f"{s.label}: median TTFT {seconds(_median(s.ttft))}, ITL {seconds(_median(s.itl))}, "
        f"{rate(_median(s.client))}"
        for s in drawn
    )
    return draw_picture("inference", "Time to first token, gaps and decode rate", f"{alt}.", draw)


def _spread_values(spread: Spread | None) -> Sequence[float]:
    return spread.values if spread else ()


def _median(spread: Spread | None) -> float | None:
    return spread.median if spread else None


def _strips(ax: Axes, rows: Sequence[Sequence[float]], *, filled: bool) -> None:
    """A dot per value where there are few; else a tick per value and a bar over the middle half."""
    for place, values in enumerate(rows):
        if not values:
            continue
        ordered = np.sort(np.asarray(values, dtype=float))
        few = len(ordered) <= FEW_DOTS
        if not filled:
            marked = ordered if few else ordered[[0, len(ordered) // 2, -1]]
            heights = np.full(len(marked), place + 0.26)
            ax.scatter(marked, heights, 30, marker="D", facecolors="none", edgecolors=SWAP, linewidths=1.3)
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
    thinned: Values = ordered[np.linspace(0, len(ordered) - 1, MOST_TICKS).round().astype(int)]
    return thinned


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


STYLES = (
    (ACCENT, "o", "-"),
    (SWAP, "s", "--"),
    (INK, "^", "-."),
    (MUTED, "D", ":"),
    (ACCENT, "v", "--"),
    (SWAP, "P", "-."),
    (INK, "X", ":"),
    (MUTED, "<", "-"),
)
"""Colour, marker and line of each series: distinct without colour too."""


@dataclass(frozen=True)
class Point:
    """One stage in a panel."""

    x: int
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes: its titles and its series by name."""

    x: str
    y: str
    series: dict[str, list[Point]]


def scaling_panels(stages: Sequence[StageRow]) -> list[Panel]:
    """The panels for which there are at least two prompt lengths, or two numbers of requests at once."""
    length, concurrency = "prompt (tokens)", "requests at once"
    candidates = [
        Panel(length, "time to first token (s)", _series(stages, True, lambda stage: stage.ttft)),
        Panel(length, "decode rate (tokens/s)", _series(stages, True, lambda stage: stage.client)),
        Panel(
            concurrency, "output of all (tokens/s)", _series(stages, False, lambda stage: stage.output_rate)
        ),
        Panel(concurrency, "time to first token (s)", _series(stages, False, lambda stage: stage.ttft)),
    ]
    return [panel for panel in candidates if panel.series]


def scaling_figure(drawn: Sequence[Panel]) -> Picture | None:
    """The panels beside one another; on a phone under one another. None where there are none."""
    if not drawn:
        return None
    names = list(dict.fromkeys(name for panel in drawn for name in panel.series))

    def draw(canvas: Canvas) -> Figure:
        columns = 1 if canvas.narrow else min(2, len(drawn))
        rows = -(-len(drawn) // columns)
        figure = new_figure(canvas, 210 * rows + 22 * len(names) + 20)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, panel in zip(grid, drawn, strict=False):
            _draw(ax, panel, names)
        for ax in grid[len(drawn) :]:
            ax.set_axis_off()
        handles, labels = [], []
        for name in names:
            ax = next(a for a, panel in zip(grid, drawn, strict=False) if name in panel.series)
            handles.append(next(line for line in ax.get_lines() if line.get_label() == name))
            labels.append(short(name, canvas, 60, 40))
        figure.legend(
            handles, labels, loc="outside lower left", ncols=1 if canvas.narrow else 2, frameon=False,
            fontsize=10.5, handlelength=3,
        )  # fmt: skip
        return figure

    alt = "; ".join(
        f"{panel.y} by {panel.x}, {name}: " + ", ".join(f"{p.x}: {p.y:.3g}" for p in points)
        for panel in drawn
        for name, points in panel.series.items()
    )
    return draw_picture("scaling", "Speed by prompt length and by requests at once", f"{alt}.", draw)


def _series(
    stages: Sequence[StageRow], by_prompt: bool, value: Callable[[StageRow], Spread | float | None]
) -> dict[str, list[Point]]:
    """Stages that differ in prompt length alone, or in concurrency alone; at least two to a name."""
    groups: dict[str, dict[int, Point]] = {}
    for stage in stages:
        if by_prompt:
            x, other = stage.prompt, f", {stage.concurrency} at once" if stage.concurrency > 1 else ""
        else:
            x, other = stage.concurrency, f", {stage.prompt} in" if stage.prompt else ""
        y = value(stage)
        if y and x is not None:
            # A later trial of the same kind replaces the earlier one here; the table has both.
            point = Point(x, y.median, y.low, y.high) if isinstance(y, Spread) else Point(x, y)
            groups.setdefault(f"{stage.model}{other}", {})[x] = point
    return {name: [points[x] for x in sorted(points)] for name, points in groups.items() if len(points) > 1}


def _draw(ax: Axes, panel: Panel, names: Sequence[str]) -> None:
    for name, points in panel.series.items():
        colour, marker, line = STYLES[names.index(name) % len(STYLES)]
        xs, ys = [p.x for p in points], [p.y for p in points]
        ax.plot(xs, ys, color=colour, marker=marker, linestyle=line, markersize=6, label=name)
        for p in points:
            if p.low is not None and p.high is not None:
                ax.plot([p.x, p.x], [p.low, p.high], color=colour, linewidth=4, alpha=0.35)
    every = sorted({p.x for points in panel.series.values() for p in points})
    ax.set_xscale("log")
    ax.set_xticks(every)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylim(0, max(p.high or p.y for points in panel.series.values() for p in points) * 1.15)
    ax.set_xlabel(panel.x)
    ax.set_ylabel(panel.y)
    ax.grid(axis="x", color=GRID)


MOST_DOTS = 400


def soak_figure(soaks: Sequence[SoakRow]) -> Picture | None:
    """A row of axes per soak; None where no request of any gave a rate."""
    drawn = [row for row in soaks if row.rates]
    if not drawn:
        return None

    def draw(canvas: Canvas) -> Figure:
        figure = new_figure(canvas, 120 * len(drawn) + 56)
        grid = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
        for ax, row in zip(grid, drawn, strict=True):
            rates = np.asarray(row.rates)
            dots = rates[np.unique(np.linspace(0, len(rates) - 1, MOST_DOTS).astype(int))]
            ax.scatter(dots[:, 0] / 60, dots[:, 1], s=14, color=ACCENT, alpha=0.7, linewidths=0)
            ax.axhline(float(np.median(rates[:, 1])), color=INK, linewidth=1.2)
            ax.set_xlim(0, max(row.took_s, 1.0) / 60)
            ax.set_ylim(0, float(rates[:, 1].max()) * 1.2)
            ax.set_title(short(row.trial, canvas, 60, 40), loc="left", fontsize=11.5, color=INK, pad=3)
        grid[-1].set_xlabel("time since the start of the soak (min)")
        figure.supylabel("decode rate (tokens/s)", fontsize=11.5)
        return figure

    alt = "; ".join(
        f"{row.trial}: {len(row.rates)} requests in {seconds(row.took_s)}, "
        f"median {rate(float(np.median([value for _, value in row.rates])))}"
        for row in drawn
    )
    return draw_picture("soak", "Decode rate over each soak", f"{alt}.", draw)
