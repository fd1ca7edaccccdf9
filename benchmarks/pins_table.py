"""Load, prompt and decode of several releases, measured in turns, as ratios to one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from harness.runs.statistics import spread
from rich.console import Console
from rich.table import Table

from ratio_table import Row


@dataclass(frozen=True)
class Figures:
    """One release in one round."""

    load_s: float
    prompt_tokens_per_s: float
    decode_tokens_per_s: float


COLUMNS = {
    "load_s": ("load, s", "below 1 is faster"),
    "prompt_tokens_per_s": ("prompt, tokens/s", "above 1 is faster"),
    "decode_tokens_per_s": ("decode, tokens/s", "above 1 is faster"),
}


@dataclass(frozen=True)
class Pins:
    """All that was measured, by build. A release that failed is measured no more and has no ratio."""

    measured: Mapping[int, Sequence[Figures]]
    failed: Mapping[int, str]
    """What became of those that gave no figures."""

    @property
    def base(self) -> int | None:
        """The first release that gave figures in every round: the others are held against it."""
        return next((pin for pin in self.measured if pin not in self.failed), None)

    def row(self, pin: int, figure: str) -> Row:
        """One figure of a release beside the base's, round by round."""
        assert self.base is not None
        ours, theirs = (
            [float(getattr(one, figure)) for one in self.measured[which]] for which in (pin, self.base)
        )
        return Row(figure, ours, theirs, None)

    def head(self) -> list[str]:
        """The table's first row."""
        ratio = f"ratio to {self.base} [95%]" if self.base else "ratio"
        pairs = ((name, f"{ratio}, {better}") for name, better in COLUMNS.values())
        return ["llama.cpp", *(cell for pair in pairs for cell in pair)]

    def rows(self) -> list[list[str]]:
        """The others: a median and a ratio of each figure, or what became of the release."""
        rest = [""] * (2 * len(COLUMNS) - 1)
        return [
            [str(pin), self.failed[pin], *rest]
            if pin in self.failed
            else [str(pin), *(cell for name in COLUMNS for cell in self._cells(pin, name))]
            for pin in self.measured
        ]

    def _cells(self, pin: int, name: str) -> tuple[str, str]:
        row = self.row(pin, name)
        value, ratio = spread(row.ours), row.ratio
        assert value is not None
        interval = "" if ratio.low is None else f" [{ratio.low:.3f} .. {ratio.high:.3f}]"
        return f"{value.median:.2f}", "1" if pin == self.base else f"{ratio.median:.3f}{interval}"

    def data(self) -> dict[str, object]:
        """The same for a JSON file, with every value."""
        ratios = {
            pin: {name: self.row(pin, name).ratio for name in COLUMNS}
            for pin in self.measured
            if pin not in self.failed
        }
        return {
            "base": self.base,
            "failed": dict(self.failed),
            "rounds": {pin: [asdict(one) for one in rounds] for pin, rounds in self.measured.items()},
            "ratios": {
                pin: {
                    name: {"median": one.median, "low": one.low, "high": one.high}
                    for name, one in named.items()
                }
                for pin, named in ratios.items()
            },
        }


def markdown(pins: Pins) -> str:
    """The table for a page of docs."""
    head = pins.head()
    lines = [head, ["---"] * len(head), *pins.rows()]
    return "\n".join(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in line)}|" for line in lines)


def text(title: str, pins: Pins) -> str:
    """The table for a terminal."""
    shown = Table(*pins.head(), title=title)
    for row in pins.rows():
        shown.add_row(*row)
    console = Console(width=140)
    with console.capture() as captured:
        console.print(shown)
    return captured.get().rstrip()
