"""Differences between runs as rows of text, and those since the previous run."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from harness.errors import HarnessError
from harness.report.data import Row, RunData
from harness.report.format import DASH, digits, seconds, size
from harness.runs.compare import Change, compare, figures_of, read_figures
from harness.runs.folder import read_manifest
from harness.runs.statistics import Spread

MARKS = {
    "worse": ("▲", "failed", "worse"),
    "better": ("▼", "passed", "better"),
    "same": ("=", "plain", "within the noise"),
}
"""Symbol, CSS class and words of each verdict."""
_LARGEST_SORT_KEY = 1e12
"""Sorts a figure that grew from zero; the page's script cannot parse an infinity."""


@dataclass(frozen=True)
class ChangeRow:
    """One line of the table, as text."""

    what: str
    figure: str
    run: str
    before: str
    after: str
    ratio: str
    interval: str
    verdict: str
    symbol: str
    colour: str
    sort: float


def change_rows(changes: Sequence[Change]) -> list[ChangeRow]:
    """The changes as text, in their order."""
    return [_row(change) for change in changes]


def _row(change: Change) -> ChangeRow:
    low, high = change.difference.low, change.difference.high
    symbol, colour, verdict = MARKS[change.verdict]
    has_interval = low is not None and high is not None
    return ChangeRow(
        what=change.what,
        figure=change.figure.label,
        run=change.run,
        before=spread_text(change.before, change.figure.unit),
        after=spread_text(change.after, change.figure.unit),
        ratio=_ratio(change.difference.ratio),
        interval=f"{_ratio(low)} to {_ratio(high)}" if low is not None and high is not None else DASH,
        verdict=verdict if has_interval else "too few values",
        symbol=symbol,
        colour=colour,
        sort=min(change.worse_by, _LARGEST_SORT_KEY),
    )


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if isfinite(ratio) else "∞"


def spread_text(values: Spread, unit: str) -> str:
    """Median with its interval, or with every value where they are few."""
    form = {"s": seconds, "bytes": size}.get(unit, lambda value: f"{digits(value)} {unit}")
    if values.n == 1:
        return form(values.median)
    if values.few:
        each = ", ".join(digits(value) if unit != "bytes" else size(value) for value in values.values)
        return f"{form(values.median)} ({each})"
    has_interval = values.low is not None and values.high is not None
    interval = f", {form(values.low or 0)} to {form(values.high or 0)}" if has_interval else ""
    return f"{form(values.median)}{interval}, n = {values.n}"


def compare_with_previous(run: RunData) -> Row | None:
    """What differs by more than the noise from the previous run of the same profile on the same inventory.

    Returns:
        None where there is no earlier run beside this one that ended and can be read.
    """
    figures = figures_of(run.manifest, run.trials, run.requests)
    for folder in _earlier_runs(run):
        try:
            comparison = compare([read_figures(folder), figures])
        except HarnessError:  # A damaged neighbour says nothing against this run's own page.
            continue
        changes = [change for change in comparison.changes if change.verdict != "same"]
        return {
            "run": folder.name,
            "rows": change_rows(changes),
            "outcomes": comparison.outcomes,
            "surroundings": comparison.surroundings,
            "compared": len(comparison.changes),
        }
    return None


def _earlier_runs(run: RunData) -> list[Path]:
    """Folders of the ended runs of this profile on this inventory that began earlier, the latest first."""
    current, earlier = run.manifest, list[tuple[int, Path]]()
    for path in run.folder.resolve().parent.glob("*/run.json"):
        try:
            other = read_manifest(path.parent)
        except HarnessError:
            continue
        same = (other.inventory, other.profile) == (current.inventory, current.profile)
        if same and other.started_ns < current.started_ns and other.outcome is not None:
            earlier.append((other.started_ns, path.parent))
    return [folder for _, folder in sorted(earlier, reverse=True)]
