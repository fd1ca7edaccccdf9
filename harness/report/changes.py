"""Differences between runs as text: for the page that compares runs, and for the one of a single run."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from harness.report.format import DASH, digits, seconds, size
from harness.runs.compare import Change
from harness.runs.statistics import Spread

MARKS = {"worse": ("▲", "failed"), "better": ("▼", "passed"), "same": ("=", "plain")}


_BEYOND_ALL = 1e12
"""Where a table sorts what came out of nothing; a page's script reads no infinity."""


@dataclass(frozen=True)
class Row:
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


def rows(changes: Sequence[Change]) -> list[Row]:
    """The changes as people read them."""
    return [_row(change) for change in changes]


def _row(one: Change) -> Row:
    low, high = one.difference.low, one.difference.high
    symbol, colour = MARKS[one.verdict]
    told = {"worse": "worse", "better": "better", "same": "within the noise"}[one.verdict]
    return Row(
        what=one.what,
        figure=one.figure.label,
        run=one.run,
        before=shown(one.before, one.figure.unit),
        after=shown(one.after, one.figure.unit),
        ratio=_times(one.difference.ratio),
        interval=f"{_times(low)} to {_times(high)}" if low is not None and high is not None else DASH,
        verdict=told if low is not None else "too few to tell",
        symbol=symbol,
        colour=colour,
        sort=min(one.worse_by, _BEYOND_ALL),
    )


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if isfinite(ratio) else "∞"


def shown(values: Spread, unit: str) -> str:
    """Median with its interval, or with every value where they are few."""
    form = {"s": seconds, "bytes": size}.get(unit, lambda value: f"{digits(value)} {unit}")
    if values.n == 1:
        return form(values.median)
    if values.few:
        each = ", ".join(digits(value) if unit != "bytes" else size(value) for value in values.values)
        return f"{form(values.median)} ({each})"
    known = values.low is not None and values.high is not None
    interval = f", {form(values.low or 0)} to {form(values.high or 0)}" if known else ""
    return f"{form(values.median)}{interval}, n = {values.n}"
