"""Table of two programs measured in turns: medians, ratio, and whether the ratio is near 1."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.runs.statistics import Spread, spread
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One figure of both programs, per round."""

    name: str
    ours: Sequence[float]
    theirs: Sequence[float]
    within: float | None
    """Allowed distance of the ratio from 1; None if there is no goal."""

    @property
    def ratio(self) -> Spread:
        """Ours / theirs within each round, so that other work on the machine affects both equally."""
        found = spread([a / b for a, b in zip(self.ours, self.theirs, strict=True)])
        assert found is not None
        return found

    @property
    def met(self) -> bool:
        """Whether the median of the ratios meets the goal."""
        return self.within is None or abs(self.ratio.median - 1) <= self.within


def table(title: str, us: str, them: str, rows: Sequence[Row]) -> str:
    """The table as text."""
    shown = Table("", us, them, "ratio [95%]", "goal", "", title=title)
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
    """The rows for a JSON file."""
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
