"""Table of the router's benchmark: medians of the rounds, and each goal with the measured value."""

import statistics
from dataclasses import dataclass, fields
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figures:
    """One contender in one round."""

    requests_per_s: float
    p50_ms: float
    ttft_p50_ms: float
    ttft16_p50_ms: float
    delay_p50_ms: float
    resident_mb: float


@dataclass(frozen=True)
class Bar:
    """A goal: the value must be at least, or at most, the limit."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def medians(rounds: list[dict[str, float]]) -> Figures:
    """Median of each figure over the rounds."""
    return Figures(**{f.name: statistics.median(r[f.name] for r in rounds) for f in fields(Figures)})


def bars(result: dict[str, Any]) -> list[Bar]:
    """Every goal that this run measured.

    Differences and ratios are computed within a round, then their median, so that other work on the machine
    affects both equally.
    """
    rounds, streams = result["rounds"], result["thousand_streams"]

    def added(name: str, figure: str) -> float:
        pairs = zip(rounds[name], rounds["direct"], strict=True)
        return statistics.median(a[figure] - b[figure] for a, b in pairs)

    def ratio(over: str, under: str, figure: str) -> float:
        pairs = zip(rounds[over], rounds[under], strict=True)
        return statistics.median(a[figure] / b[figure] for a, b in pairs)

    found = [
        Bar("added TTFT p50, ms", added("router", "ttft_p50_ms"), 2),
        Bar("added TTFT p50 with 16 streams, ms", added("router", "ttft16_p50_ms"), 4),
        Bar("added delay per chunk p50 with 16 streams, ms", added("router", "delay_p50_ms"), 1),
        Bar("resident, MB", medians(rounds["router"]).resident_mb, 100),
    ]
    if "litellm" in rounds:
        found = [
            Bar("requests/s / LiteLLM's", ratio("router", "litellm", "requests_per_s"), 15, at_least=True),
            Bar("added p50 / LiteLLM's", added("router", "p50_ms") / added("litellm", "p50_ms"), 0.1),
            *found,
        ]
    if "router" in streams:
        found += [
            Bar("1,000 streams on one core: complete", streams["router"]["streams"], 1000, at_least=True),
            Bar("1,000 streams on one core: peak, MB", streams["router"]["peak_mb"], 400),
        ]
    return found


def table(result: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The text to print, and the goals as data."""
    figures = Table("", *(field.name for field in fields(Figures)), title="medians of the rounds")
    for name, rounds in result["rounds"].items():
        figures.add_row(name, *(f"{value:,.2f}" for value in vars(medians(rounds)).values()))
    shown = Table("goal", "measured", "limit", "", title="goals")
    found = bars(result)
    for bar in found:
        sign = ">=" if bar.at_least else "<="
        shown.add_row(bar.name, f"{bar.value:,.2f}", f"{sign} {bar.limit:g}", "met" if bar.met else "MISSED")
    console = Console(width=110)
    with console.capture() as captured:
        console.print(figures, shown)
        for name, seen in result["thousand_streams"].items():
            console.print(f"1,000 streams, {name}: " + ", ".join(f"{k} {v:,.1f}" for k, v in seen.items()))
    return captured.get(), [vars(bar) | {"met": bar.met} for bar in found]
