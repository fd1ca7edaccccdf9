"""Two or more runs side by side: which figures differ, by how much, and whether by more than the noise."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness.common.text import gib
from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.run_records import Outcome, Request, RunManifest, Trial
from harness.runs.folder import read_manifest, read_requests, read_trials
from harness.runs.metrics import decode_rate, measured_by_trial, most_backend_swap
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
    Figure("swap_bytes", "rpc-server swap, peak", "bytes", "lower"),
)
_PER_REQUEST = ("ttft_s", "tpot_s", "decode_tokens_per_s")


@dataclass(frozen=True)
class RunFigures:
    """One run: each trial's figures by the trial's label."""

    manifest: RunManifest
    trials: list[Trial]
    values: dict[str, dict[str, list[float]]]
    """By label, then by figure: one value per load, or per request, over all repeats."""

    @cached_property
    def labels(self) -> dict[str, str]:
        """What each trial tried, by its id."""
        return label_trials(self.trials)

    def outcomes(self, label: str) -> list[Outcome]:
        """Of every trial with this label."""
        return [trial.outcome for trial in self.trials if self.labels[trial.id] == label]


@dataclass(frozen=True)
class Change:
    """One figure of the trials with one label, in the first run and in another."""

    what: str
    """Their label: ``inference 13b-q4_0 prompt_tokens 35``."""
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
    """Trials with one label whose outcomes differ, or that only one of the runs tried."""

    what: str
    run: str
    before: str
    after: str
    worse: bool


@dataclass(frozen=True)
class Comparison:
    """Several runs compared with the first of them."""

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
    figures = RunFigures(manifest, trials, {})
    for trial in trials:
        if trial.outcome is Outcome.PASSED:
            values = figures.values.setdefault(figures.labels[trial.id], {})
            for name, value in _values(trial, by_trial.get(trial.id, [])):
                values.setdefault(name, []).append(value)
    return figures


def _values(trial: Trial, requests: Sequence[Request]) -> Iterator[tuple[str, float]]:
    for figure in FIGURES:
        if figure.name not in _PER_REQUEST and figure.name in trial.metrics:
            yield figure.name, trial.metrics[figure.name]
    if trial.kind == "load" and (swap := most_backend_swap([trial])) is not None:
        yield "swap_bytes", float(swap)
    for request in requests:
        for name, value in (
            ("ttft_s", request.ttft_s),
            ("tpot_s", request.tpot_s),
            ("decode_tokens_per_s", decode_rate(request)),
        ):
            if value is not None:
                yield name, value


def compare(runs: Sequence[RunFigures]) -> Comparison:
    """Every later run compared with the first."""
    first, *others = runs
    changes = [change for other in others for change in _changes(first, other)]
    order = {"worse": 0, "better": 1, "same": 2}
    changes.sort(key=lambda change: (order[change.verdict], -abs(change.worse_by)))
    outcomes = [change for other in others for change in _outcomes(first, other)]
    outcomes.sort(key=lambda outcome: not outcome.worse)
    differing = [
        line
        for other in others
        for line in (
            *surroundings(first.manifest, other.manifest),
            *loads_differ(other.manifest.run, _loads(first), _loads(other)),
        )
    ]
    return Comparison(list(runs), changes, outcomes, differing)


def _loads(run: RunFigures) -> dict[str, CoordinatorState]:
    """The first load with each label."""
    loads = [trial for trial in reversed(run.trials) if trial.kind == "load"]
    return {run.labels[trial.id]: trial.coordinator for trial in loads if trial.coordinator}


def slower(comparison: Comparison, share: float) -> list[Change]:
    """The changes to the bad that are larger than ``share`` (0.05 for 5%) and than the noise."""
    return [change for change in comparison.changes if change.verdict == "worse" and change.worse_by > share]


def too_few_values(comparison: Comparison) -> int:
    """How many figures have fewer than three values on a side: too few to tell a difference from noise."""
    return sum(change.difference.low is None for change in comparison.changes)


def _changes(first: RunFigures, other: RunFigures) -> Iterator[Change]:
    for label, values in first.values.items():
        for figure in FIGURES:
            before = values.get(figure.name, [])
            after = other.values.get(label, {}).get(figure.name, [])
            change, old, new = difference(before, after), spread(before), spread(after)
            if change and old and new:
                yield Change(label, figure, other.manifest.run, old, new, change)


def _outcomes(first: RunFigures, other: RunFigures) -> Iterator[OutcomeChange]:
    same_profile = first.manifest.profile_text == other.manifest.profile_text
    for label in dict.fromkeys([*first.labels.values(), *other.labels.values()]):
        before, after = first.outcomes(label), other.outcomes(label)
        if set(before) == set(after):
            continue
        if before and after:
            worse = _passed(after) < _passed(before)
        else:  # A trial that the same profile did not get to now is lost; another profile may not have it.
            worse = same_profile and not after and Outcome.PASSED in before
        yield OutcomeChange(label, other.manifest.run, _counted(before), _counted(after), worse)


def _passed(outcomes: Sequence[Outcome]) -> float:
    return outcomes.count(Outcome.PASSED) / len(outcomes)


def _counted(outcomes: Sequence[Outcome]) -> str:
    counts = [f"{outcomes.count(outcome)} {outcome}" for outcome in Outcome if outcome in outcomes]
    return ", ".join(counts) or "not tried"


_NO_PARAMETERS = ("kind", "model", "repeats", "requests", "duration_s", "may_not_fit", "limits")
_DEFAULTS: dict[str, Any] = {"parallel": 1, "concurrency": 1, "context": 2048, "after_s": 0}
"""Left out of a label, so that runs recorded before there was such a key match."""
_OF_THE_LOAD = ("nodes", "n_gpu_layers", "context", "parallel", "flags", "starve")
"""Parameters of a load that decide how fast its requests are; a cold and a warm load compute alike."""
_ON_A_LOAD = ("inference", "soak")
"""Kinds that send requests to the model that an earlier trial loaded."""


def label_trials(trials: Iterable[Trial]) -> dict[str, str]:
    """By trial id: kind, model, every parameter that is not the default, and those of the load it ran on."""
    labels: dict[str, str] = {}
    loads: dict[str, str] = {}
    for trial in trials:
        labels[trial.id] = _label(trial)
        if trial.kind == "load":
            step = trial.step
            loads[trial.model] = _parameters({name: step.get(name) for name in _OF_THE_LOAD})
        elif trial.kind in _ON_A_LOAD and (load := loads.get(trial.model)):
            labels[trial.id] += f"; load {load}"
    return labels


def _label(trial: Trial) -> str:
    if "step" not in trial.details:  # recorded before it was kept: the id names the parameters
        return f"{trial.kind} {re.sub(r'^[0-9]+-', '', trial.id)}"
    return f"{trial.kind} {trial.model} {_parameters(trial.step)}".rstrip()


def _parameters(step: Mapping[str, Any]) -> str:
    return " ".join(
        f"{name} {_short(value)}"
        for name, value in sorted(step.items())
        if name not in _NO_PARAMETERS and value not in (None, "", [], {}) and value != _DEFAULTS.get(name)
    )


def _short(value: Any) -> str:
    if isinstance(value, dict) and value.keys() == {"node", "memory"}:
        return f"{value['node']} to {gib(value['memory'])}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
