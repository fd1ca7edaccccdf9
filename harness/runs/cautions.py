"""Warnings about the figures of a run: outliers, few repeats, busy machines, clocks that differ."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from harness.contracts.run_records import Outcome, Request, Trial
from harness.runs.compare import label_trials
from harness.runs.metrics import decode_rate, measured_by_trial
from harness.runs.statistics import FEWEST

ENOUGH = 5
"""With fewer values none is called an outlier, nor the first one slow."""
FAR = 3.5
"""Modified z-score of an outlier (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993)."""
NOTABLE = 0.05
"""A value within this share of the median is never an outlier, however alike the others are."""
BUSY = 1.5
"""Load average per CPU from which other programs may have computed too."""
WAITING_PERCENT = 10.0
CLOCK_OFF_S = 0.1
REPEATED = ("pool", "inference")
"""Kinds whose figures are medians of repeats."""
_MAD_TO_SIGMA = 0.6745


@dataclass(frozen=True)
class NodeConditions:
    """How busy one node was over a run; None where its samples do not say."""

    node: str
    cpus: int | None = None
    load1: float | None = None
    """Highest load average of one minute."""
    memory_full: float | None = None
    """Highest PSI ``avg10`` of memory full: per cent of 10 s in which every task waited."""
    clock_offset_s: float | None = None
    """Its clock minus the head node's, where the difference was largest."""


def cautions(
    trials: Sequence[Trial], requests: Sequence[Request], conditions: Sequence[NodeConditions]
) -> list[str]:
    """One sentence for each reason to doubt a figure of the run."""
    return [
        *_of_requests(requests),
        *_of_loads(trials),
        *_of_repeats(trials, requests),
        *(sentence for node in conditions for sentence in _of_node(node)),
    ]


def outliers(values: Sequence[float]) -> list[int]:
    """Indices of the outliers, by the modified z-score."""
    if len(values) < ENOUGH:
        return []
    middle = median(values)
    spread = median(abs(value - middle) for value in values)
    return [
        place
        for place, value in enumerate(values)
        if _MAD_TO_SIGMA * abs(value - middle) > FAR * spread and abs(value - middle) > NOTABLE * abs(middle)
    ]


def _of_requests(requests: Sequence[Request]) -> Iterator[str]:
    for trial, group in measured_by_trial(requests).items():
        for name, values, slow in (
            ("TTFT", [r.ttft_s for r in group if r.ttft_s is not None], max),
            ("decode rate", [rate for r in group if (rate := decode_rate(r))], min),
        ):
            apart = outliers(values)
            if not apart:
                continue
            if apart == [0] and values[0] == slow(values):
                yield (
                    f"{trial}: the first request was slower than the rest ({name} {values[0]:.3g}, median "
                    f"{median(values):.3g}); a cold cache may be why; a longer warm-up would show"
                )
            else:
                worst = max((values[place] for place in apart), key=lambda v: abs(v - median(values)))
                yield (
                    f"{trial}: {len(apart)} of {len(values)} values of {name} are outliers, the "
                    f"farthest {worst:.3g} beside a median of {median(values):.3g}; other programs may run"
                )


def _of_loads(trials: Sequence[Trial]) -> Iterator[str]:
    labels = label_trials(trials)
    groups: dict[tuple[str, str, str], list[float]] = {}
    for trial in trials:
        if trial.kind == "load" and trial.outcome is Outcome.PASSED and "load_s" in trial.metrics:
            label = labels[trial.id] if "step" in trial.details else str(trial.details.get("nodes", ""))
            key = (trial.model, str(trial.details.get("cache", "")), label)
            groups.setdefault(key, []).append(trial.metrics["load_s"])
    for (model, cache, _), values in groups.items():
        if 0 in outliers(values) and values[0] == max(values):
            kind = f"{cache} load" if cache else "load"
            yield (
                f"{model}: the first {kind} took {values[0]:.1f} s, the median is {median(values):.1f} s; "
                "the first one filled caches that the others used"
            )


def _of_repeats(trials: Sequence[Trial], requests: Sequence[Request]) -> Iterator[str]:
    repeated = {trial.id for trial in trials if trial.kind in REPEATED}
    groups = {trial: group for trial, group in measured_by_trial(requests).items() if trial in repeated}
    few = [trial for trial, group in groups.items() if len(group) < FEWEST]
    if few:
        yield (
            f"{len(few)} of {len(groups)} trials with requests have fewer than {FEWEST} repeats: their "
            "figures carry no interval, and a difference between them may be chance"
        )


def _of_node(node: NodeConditions) -> Iterator[str]:
    if node.load1 is not None and node.cpus and node.load1 > BUSY * node.cpus:
        yield (
            f"{node.node}: load average up to {node.load1:.1f} on {node.cpus} CPUs; more tasks than "
            "CPUs, as where nodes share one machine: rates are lower than on idle hardware"
        )
    if node.memory_full is not None and node.memory_full > WAITING_PERCENT:
        yield (
            f"{node.node}: every task waited for memory for up to {node.memory_full:.0f} % of 10 s; rates of "
            "trials at that time are limited by swap, not by the processors"
        )
    if node.clock_offset_s is not None and abs(node.clock_offset_s) > CLOCK_OFF_S:
        yield (
            f"{node.node}: its clock was up to {abs(node.clock_offset_s):.2f} s "
            f"{'ahead of' if node.clock_offset_s > 0 else 'behind'} the head node's; the order of events of "
            "different nodes is uncertain by as much"
        )
