"""How speed goes with the prompt's length and with requests in flight: medians with their intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from harness.report.figures.svg import (
    ACCENT,
    GRID,
    INK,
    MUTED,
    SWAP,
    Canvas,
    Picture,
    new_figure,
    picture,
    short,
)
from harness.report.sections.inference import StageRow
from harness.runs.statistics import Spread

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
"""Colour, marker and line of each series: told apart without colour too."""


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


def panels(stages: Sequence[StageRow]) -> list[Panel]:
    """The panels for which there are at least two prompt lengths, or two numbers of requests at once."""
    found = [
        Panel(
            "prompt (tokens)",
            "time to first token (s)",
            _series(stages, lambda s: s.prompt, _crowd, lambda s: _point(s.prompt, s.ttft)),
        ),
        Panel(
            "prompt (tokens)",
            "decode rate (tokens/s)",
            _series(stages, lambda s: s.prompt, _crowd, lambda s: _point(s.prompt, s.client)),
        ),
        Panel(
            "requests at once",
            "output of all (tokens/s)",
            _series(stages, lambda s: s.concurrency, _length, _output),
        ),
        Panel(
            "requests at once",
            "time to first token (s)",
            _series(stages, lambda s: s.concurrency, _length, lambda s: _point(s.concurrency, s.ttft)),
        ),
    ]
    return [panel for panel in found if panel.series]


def scaling_figure(found: Sequence[Panel]) -> Picture | None:
    """The panels beside one another; on a phone under one another. None where there are none."""
    if not found:
        return None
    names = list(dict.fromkeys(name for panel in found for name in panel.series))

    def draw(canvas: Canvas) -> Figure:
        columns = 1 if canvas.narrow else min(2, len(found))
        rows = -(-len(found) // columns)
        figure = new_figure(canvas, 210 * rows + 22 * len(names) + 20)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, panel in zip(grid, found, strict=False):
            _draw(ax, panel, names)
        for ax in grid[len(found) :]:
            ax.set_axis_off()
        handles, labels = [], []
        for name in names:
            ax = next(a for a, panel in zip(grid, found, strict=False) if name in panel.series)
            handles.append(next(line for line in ax.get_lines() if line.get_label() == name))
            labels.append(short(name, canvas, 60, 40))
        figure.legend(
            handles, labels, loc="outside lower left", ncols=1 if canvas.narrow else 2, frameon=False,
            fontsize=10.5, handlelength=3,
        )  # fmt: skip
        return figure

    spoken = "; ".join(
        f"{panel.y} by {panel.x}, {name}: " + ", ".join(f"{p.x}: {p.y:.3g}" for p in points)
        for panel in found
        for name, points in panel.series.items()
    )
    return picture("scaling", "Speed by prompt length and by requests at once", f"{spoken}.", draw)


def _series(
    stages: Sequence[StageRow],
    place: Callable[[StageRow], int | None],
    rest: Callable[[StageRow], str],
    point: Callable[[StageRow], Point | None],
) -> dict[str, list[Point]]:
    """Stages that differ in ``place`` alone, by model and the rest; at least two of them."""
    groups: dict[str, dict[int, Point]] = {}
    for stage in stages:
        found, at = point(stage), place(stage)
        if found is not None and at is not None:
            # A later trial of the same kind stands for the earlier one: both are in the table.
            groups.setdefault(f"{stage.model}{rest(stage)}", {})[at] = found
    return {name: [points[x] for x in sorted(points)] for name, points in groups.items() if len(points) > 1}


def _crowd(stage: StageRow) -> str:
    return f", {stage.concurrency} at once" if stage.concurrency > 1 else ""


def _length(stage: StageRow) -> str:
    return f", {stage.prompt} in" if stage.prompt else ""


def _point(x: int | None, found: Spread | None) -> Point | None:
    return Point(x, found.median, found.low, found.high) if x is not None and found else None


def _output(stage: StageRow) -> Point | None:
    return Point(stage.concurrency, stage.output_rate) if stage.output_rate else None


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
