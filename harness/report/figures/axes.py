"""The time axis that figures of the whole run share: minutes since its start, with its trials as bands."""

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MultipleLocator

from harness.report.data import RunData
from harness.report.figures.svg import BAND, GRID, MUTED, Canvas


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
