"""The page of several runs side by side."""

from collections.abc import Sequence
from pathlib import Path

from harness.report.changes import rows
from harness.report.figures.compare import MOST_ROWS, compare_figure
from harness.report.page import self_contained
from harness.runs.compare import Comparison, compare, read_figures
from harness.runs.store import write_whole


def render_comparison(comparison: Comparison) -> str:
    """One self-contained HTML page."""
    worse = sum(one.verdict == "worse" for one in comparison.changes)
    return self_contained(
        "compare.html.j2",
        comparison=comparison,
        first=comparison.runs[0].manifest,
        others=[run.manifest for run in comparison.runs[1:]],
        rows=rows(comparison.changes),
        figure=compare_figure(comparison.changes),
        most_drawn=MOST_ROWS,
        worse=worse + sum(one.worse for one in comparison.outcomes),
        better=sum(one.verdict == "better" for one in comparison.changes),
    )


def write_comparison(folders: Sequence[Path], target: Path) -> Comparison:
    """Compare runs and write the page in one step.

    Raises:
        HarnessError: a folder is no run, or the page cannot be written.
    """
    comparison = compare([read_figures(folder) for folder in folders])
    write_whole(target, render_comparison(comparison).encode())
    return comparison
