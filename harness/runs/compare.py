"""Two or more runs side by side: which figures differ, by how much, and whether by more than the noise."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.run_records import Outcome, Request, RunManifest, Trial
from harness.runs.metrics import SWAP_NOISE_BYTES, decode_rate, measured_by_trial
from harness.runs.read import read_manifest, read_requests, read_trials
from harness.runs.statistics import Difference, Spread, difference, spread
from harness.runs.surroundings import loads_differ, surroundings

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Figure:
    """What can be compared."""

    name: str
    label: str
    unit: Literal["s", "tokens/s", "bytes"]
    better: Better


FIGURES = (
    Figure("load_s", "load", "s", "lower"),
    Figure("canary_s", "first token of the load", "s", "lower"),
    Figure("overhead_s", "router's share of the load", "s", "lower"),
    Figure("wire_bytes", "bytes on the wire", "bytes", "lower"),
    Figure("ttft_s", "TTFT", "s", "lower"),
    Figure("tpot_s", "TPOT", "s", "lower"),
    Figure("decode_tokens_per_s", "decode", "tokens/s", "higher"),
    Figure("tokens_per_s", "all streams together", "tokens/s", "higher"),
    Figure("stop_s", "stop", "s", "lower"),
    Figure("swap_bytes", "peak swap of a backend", "bytes", "lower"),
)
_PER_REQUEST = ("ttft_s", "tpot_s", "decode_tokens_per_s")
_NOT_A_PARAMETER = ("repeats", "requests", "duration_s", "may_not_fit", "limits")
_PLAIN: dict[str, Any] = {"parallel": 1, "concurrency": 1, "context": 2048}
"""Values that a step has where nothing else is said: runs of before there was such a key match."""


@dataclass(frozen=True)
class RunFigures:
    """One run: each trial's figures by what was tried."""

    manifest: RunManifest
    trials: list[Trial]
    values: dict[str, dict[str, list[float]]]
    """By what was tried, then by figure: one value per load, or per request, over all repeats."""

    def outcomes(self, what: str) -> list[Outcome]:
        """Of every trial of this kind."""
        return [trial.outcome for trial in self.trials if tried(trial) == what]


@dataclass(frozen=True)
class Change:
    """One figure of one kind of trial, in the first run and in another."""

    what: str
    """``inference 13b-q4_0 prompt_tokens 35``."""
    figure: Figure
    run: str
    """The other run's name."""
    before: Spread
    after: Spread
    difference: Difference

    @property
    def worse_by(self) -> float:
        """How much slower or larger it is: 0.05 is 5% to the bad, negative is to the good."""
        ratio = self.difference.ratio
        if self.figure.better == "lower":
            return ratio - 1
        return 1 / ratio - 1 if ratio else float("inf")

    @property
    def verdict(self) -> Literal["worse", "better", "same"]:
        """``same`` unless the difference is larger than the noise."""
        if not self.difference.beyond_noise:
            return "same"
        return "worse" if self.worse_by > 0 else "better"


@dataclass(frozen=True)
class OutcomeChange:
    """Trials of one kind that ended otherwise, or that only one of the runs tried."""

    what: str
    run: str
    before: str
    after: str
    worse: bool


@dataclass(frozen=True)
class Comparison:
    """Several runs beside the first of them."""

    runs: list[RunFigures]
    changes: list[Change]
    """Regressions beyond the noise first, then gains, then the rest; the largest first."""
    outcomes: list[OutcomeChange]
    surroundings: list[str]
    """What else differs, in plain words: builds, nodes, flags, profiles."""


def read_figures(folder: Path) -> RunFigures:
    """The figures of a run, from its trials and requests alone.

    Raises:
        HarnessError: the folder is no run, or what it holds is damaged.
    """
    return figures_of(read_manifest(folder), list(read_trials(folder)), list(read_requests(folder)))


def figures_of(manifest: RunManifest, trials: list[Trial], requests: Sequence[Request]) -> RunFigures:
    """The same from records that have been read. Trials that did not pass, and warm-ups, have no figures."""
    by_trial = measured_by_trial(requests)
    values: dict[str, dict[str, list[float]]] = {}
    for trial in trials:
        if trial.outcome is Outcome.PASSED:
            held = values.setdefault(tried(trial), {})
            for name, value in _values(trial, by_trial.get(trial.id, [])):
                held.setdefault(name, []).append(value)
    return RunFigures(manifest, trials, values)


def _values(trial: Trial, requests: Sequence[Request]) -> Iterator[tuple[str, float]]:
    for figure in FIGURES:
        if figure.name not in _PER_REQUEST and figure.name in trial.metrics:
            yield figure.name, trial.metrics[figure.name]
    if trial.peak and trial.kind == "load":
        swap = max(peak.get("rpc_swap_bytes", 0) for peak in trial.peak.values())
        yield "swap_bytes", float(swap if swap > SWAP_NOISE_BYTES else 0)
    for request in requests:
        for name, value in (
            ("ttft_s", request.ttft_s),
            ("tpot_s", request.tpot_s),
            ("decode_tokens_per_s", decode_rate(request)),
        ):
            if value is not None:
                yield name, value


def tried(trial: Trial) -> str:
    """What a trial tried, the same in every run that tries it: kind, model and what is not as always."""
    step = trial.details.get("step")
    if not isinstance(step, str):  # Runs of before steps were kept have their lengths in the trial's name.
        return f"{trial.kind} {re.sub(r'^[0-9]+-', '', trial.id)}"
    asked = json.loads(step)
    said = [
        f"{name} {_short(value)}"
        for name, value in sorted(asked.items())
        if name not in ("kind", "model", *_NOT_A_PARAMETER) and value and value != _PLAIN.get(name)
    ]
    return " ".join([trial.kind, trial.model, *said])


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def compare(runs: Sequence[RunFigures]) -> Comparison:
    """Every later run beside the first."""
    first, *others = runs
    changes = [change for other in others for change in _changes(first, other)]
    order = {"worse": 0, "better": 1, "same": 2}
    changes.sort(key=lambda one: (order[one.verdict], -abs(one.worse_by)))
    outcomes = [change for other in others for change in _outcomes(first, other)]
    outcomes.sort(key=lambda one: not one.worse)
    around = [
        line
        for other in others
        for line in (
            *surroundings(first.manifest, other.manifest),
            *loads_differ(other.manifest.run, _loads(first), _loads(other)),
        )
    ]
    return Comparison(list(runs), changes, outcomes, around)


def _loads(run: RunFigures) -> dict[str, CoordinatorState]:
    """The first load of each kind."""
    loads = [trial for trial in reversed(run.trials) if trial.kind == "load"]
    return {tried(trial): trial.coordinator for trial in loads if trial.coordinator}


def slower(comparison: Comparison, share: float) -> list[Change]:
    """The changes to the bad that are larger than ``share`` (0.05 for 5%) and than the noise."""
    return [one for one in comparison.changes if one.verdict == "worse" and one.worse_by > share]


def told(comparison: Comparison) -> int:
    """Figures with values enough to tell a difference from noise."""
    return len(comparison.changes) - untold(comparison)


def untold(comparison: Comparison) -> int:
    """Figures with too few values for anybody to tell a difference from noise."""
    return sum(one.difference.low is None for one in comparison.changes)


def _changes(first: RunFigures, other: RunFigures) -> Iterator[Change]:
    for what, held in first.values.items():
        for figure in FIGURES:
            before = held.get(figure.name, [])
            after = other.values.get(what, {}).get(figure.name, [])
            found, old, new = difference(before, after), spread(before), spread(after)
            if found and old and new:
                yield Change(what, figure, other.manifest.run, old, new, found)


def _outcomes(first: RunFigures, other: RunFigures) -> Iterator[OutcomeChange]:
    asked_the_same = first.manifest.profile_text == other.manifest.profile_text
    for what in dict.fromkeys(tried(trial) for trial in [*first.trials, *other.trials]):
        before, after = first.outcomes(what), other.outcomes(what)
        if set(before) == set(after):
            continue
        if before and after:
            worse = _passed(after) < _passed(before)
        else:  # What one profile tried before and did not get to now was lost; another may not ask for it.
            worse = asked_the_same and not after and Outcome.PASSED in before
        yield OutcomeChange(what, other.manifest.run, _counted(before), _counted(after), worse)


def _passed(outcomes: Sequence[Outcome]) -> float:
    return sum(one is Outcome.PASSED for one in outcomes) / len(outcomes)


def _counted(outcomes: Sequence[Outcome]) -> str:
    told = ", ".join(f"{outcomes.count(one)} {one}" for one in Outcome if one in outcomes)
    return told or "not tried"
