"""Figures of two that were measured in turns as a table: medians, ratio, whether it is near 1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.runs.statistics import Spread, spread
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One figure, of both, round by round."""

    name: str
    ours: Sequence[float]
    theirs: Sequence[float]
    within: float | None
    """Share by which the ratio may be off 1; None where it is only shown."""

    @property
    def ratio(self) -> Spread:
        """Ours / theirs within each round, so that what the machine did to one it did to the other."""
        found = spread([a / b for a, b in zip(self.ours, self.theirs, strict=True)])
        assert found is not None
        return found

    @property
    def met(self) -> bool:
        """Whether the median of the ratios is within the bar."""
        return self.within is None or abs(self.ratio.median - 1) <= self.within


def table(title: str, us: str, them: str, rows: Sequence[Row]) -> str:
    """The text to print."""
    shown = Table("", us, them, "ratio [95%]", "bar", "", title=title)
    for row in rows:
        ours, theirs, ratio = spread(row.ours), spread(row.theirs), row.ratio
        assert ours is not None
        assert theirs is not None
        interval = "" if ratio.low is None else f" [{ratio.low:.3f} .. {ratio.high:.3f}]"
        shown.add_row(
            row.name,
            f"{ours.median:.2f}",
            f"{theirs.median:.2f}",
            f"{ratio.median:.3f}{interval}",
            "none" if row.within is None else f"within {row.within:.0%}",
            "" if row.within is None else "met" if row.met else "MISSED",
        )
    console = Console(width=110)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def as_data(rows: Sequence[Row]) -> list[Mapping[str, object]]:
    """The same for a JSON file."""
    return [
        {
            "name": row.name,
            "ours": list(row.ours),
            "theirs": list(row.theirs),
            "ratio": row.ratio.median,
            "low": row.ratio.low,
            "high": row.ratio.high,
            "within": row.within,
            "met": row.met,
        }
        for row in rows
    ]
