"""Table of load, prompt and decode of several releases, as ratios to one of them."""

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
    """All measurements, by build. A release that failed is not measured again and has no ratio."""

    measured: Mapping[int, Sequence[Figures]]
    failed: Mapping[int, str]
    """The reasons of the releases that gave no figures."""

    @property
    def base(self) -> int | None:
        """The first release that gave figures in every round: the base of the ratios."""
        return next((pin for pin in self.measured if pin not in self.failed), None)

    def row(self, pin: int, figure: str) -> Row:
        """One figure of a release and of the base, per round."""
        assert self.base is not None
        ours, theirs = (
            [float(getattr(one, figure)) for one in self.measured[which]] for which in (pin, self.base)
        )
        return Row(figure, ours, theirs, None)

    def head(self) -> list[str]:
        """The table's header."""
        ratio = f"ratio to {self.base} [95%]" if self.base else "ratio"
        pairs = ((name, f"{ratio}, {better}") for name, better in COLUMNS.values())
        return ["llama.cpp", *(cell for pair in pairs for cell in pair)]

    def rows(self) -> list[list[str]]:
        """The other rows: median and ratio of each figure, or the reason of a failure."""
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
        """All values, for a JSON file."""
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
    """The table in Markdown, for docs."""
    head = pins.head()
    lines = [head, ["---"] * len(head), *pins.rows()]
    return "\n".join(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in line)}|" for line in lines)


def text(title: str, pins: Pins) -> str:
    """The table as text, for a terminal."""
    shown = Table(*pins.head(), title=title)
    for row in pins.rows():
        shown.add_row(*row)
    console = Console(width=140)
    with console.capture() as captured:
        console.print(shown)
    return captured.get().rstrip()
