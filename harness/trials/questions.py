"""A run's questions and their answers: each from its trials alone, with the trials that prove it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from harness.contracts.diagnosis import FailureClass
from harness.contracts.run_records import Outcome, Question, Request, Trial, Verdict
from harness.runs.metrics import describe_backend_swap, most_backend_swap
from harness.runs.statistics import Difference, difference
from harness.trials.kinds.load import REFUSED
from harness.trials.profile.profile import Ask, Profile
from harness.trials.profile.steps import LoadStep

RESTARTS = "backend_restarts"
"""In a trial's details: restarts of each backend's unit during it, where a monitor reported them."""

_Answer = tuple[str, Verdict, Sequence[Trial], dict[str, float]]
"""The answer in words, its verdict, the trials that prove it, and its figures."""
_ASKING = ("pool", "inference", "soak")
_LOST = (
    FailureClass.BACKEND_LOST,
    FailureClass.BACKEND_UNREACHABLE,
    FailureClass.BACKEND_STALLED,
    FailureClass.NETWORK_PARTITION,
)
_TOO_LARGE = (FailureClass.OOM_KILLED, FailureClass.OUT_OF_MEMORY, FailureClass.SWAP_THRASH)


def questions_of(profile: Profile) -> list[Ask]:
    """The questions of a profile: those it names, else those that its trials can answer."""
    if profile.questions:
        return profile.questions
    loads = [step for step in profile.trials if isinstance(step, LoadStep) and not step.expected]
    models = list(dict.fromkeys(step.model for step in profile.trials if step.kind in _ASKING))
    questions = [Ask(ask="answers", model=model) for model in models]
    questions += [Ask(ask="loads", model=model) for model in dict.fromkeys(step.model for step in loads)]
    return [*questions, *([Ask(ask="stays_up")] if loads else [])]


def answer_questions(
    profile: Profile, trials: Sequence[Trial], requests: Sequence[Request]
) -> list[Question]:
    """Each question of the profile with its answer."""
    questions = []
    for number, ask in enumerate(questions_of(profile), start=1):
        text, answer_of = _QUESTIONS[ask.ask]
        answer, verdict, evidence, figures = answer_of(ask, trials, requests)
        questions.append(
            Question(
                id=f"q{number}",
                text=text.format(model=ask.model, nodes=ask.nodes or "these"),
                answer=answer,
                verdict=verdict,
                trials=[trial.id for trial in evidence],
                figures=figures,
            )
        )
    return questions


def _answers(ask: Ask, trials: Sequence[Trial], requests: Sequence[Request]) -> _Answer:
    kinds = (*_ASKING, "unload")
    relevant = [t for t in trials if t.model == ask.model and t.kind in kinds and _counts(t)]
    ids = {trial.id for trial in relevant}
    measured = [r for r in requests if r.trial in ids and not r.warmup]
    answered = sum(r.error is None for r in measured)
    if not measured:
        return f"no request was sent to {ask.model}", Verdict.UNKNOWN, relevant, {}
    failed = [trial for trial in relevant if trial.outcome is Outcome.FAILED]
    too_few = ask.times is not None and len(measured) < ask.times
    all_answered = answered == len(measured) and not too_few and not failed
    answer = f"{answered} of {len(measured)} requests were answered"
    answer += f" ({ask.times} were asked for)" if too_few else ""
    answer += f"; the first trial that failed: {failed[0].id}{_why(failed[0])}" if failed else ""
    verdict = Verdict.YES if all_answered else Verdict.PARTLY if answered else Verdict.NO
    return answer, verdict, relevant, {"answered": float(answered), "asked": float(len(measured))}


def _fits(ask: Ask, trials: Sequence[Trial], requests: Sequence[Request]) -> _Answer:
    loads = [t for t in _loads(ask, trials) if ask.nodes in (None, t.step.get("nodes"))]
    if ready := _ready(loads):
        nodes = ", ".join(ready[0].details.get("nodes", []))
        answer = f"it came up over {nodes}, {describe_backend_swap(ready)}"
        return answer, _swap_verdict(ready), ready, _swap_figure(ready)
    too_large = [
        trial
        for trial in loads
        if trial.details.get(REFUSED) == "does_not_fit"
        or (trial.diagnosis and trial.diagnosis.failure_class in _TOO_LARGE)
    ]
    if too_large:
        return too_large[0].answer, Verdict.NO, too_large, {}
    return loads[0].answer if loads else "no load was tried", Verdict.UNKNOWN, loads, {}


def _how_long(ask: Ask, trials: Sequence[Trial], requests: Sequence[Request]) -> _Answer:
    loads = _loads(ask, trials)
    ready = _ready(loads)
    failed = [trial for trial in loads if trial.outcome is Outcome.FAILED]
    failures = [f"{trial.id} failed{_why(trial)}" for trial in failed]
    if not ready and failed:
        return "; ".join(failures), Verdict.NO, failed, {}
    if not ready:
        return loads[0].answer if loads else "no load was tried", Verdict.UNKNOWN, loads, {}
    groups: dict[str, list[float]] = {}
    for trial in ready:
        groups.setdefault(_load_label(trial, ready), []).append(trial.metrics["load_s"])
    times = [f"{label} in {median(values):.1f} s{_each(values)}" for label, values in groups.items()]
    figures = {f"load_s, {label}": median(values) for label, values in groups.items()}
    answer = "; ".join([", ".join(times), describe_backend_swap(ready), *failures])
    verdict = Verdict.PARTLY if failed else _swap_verdict(ready)
    return answer, verdict, [*ready, *failed], figures | _swap_figure(ready)


def _load_label(trial: Trial, among: Sequence[Trial]) -> str:
    """What distinguishes this load from the others: caches, and nodes and build where they differ."""
    parts = [str(trial.details.get("cache", "load"))]
    if len({len(other.details.get("nodes", ())) for other in among}) > 1:
        parts.append(f"over {len(trial.details.get('nodes', ()))} nodes")
    if len({_build(other) for other in among}) > 1:
        parts.append(f"with build {_build(trial)}")
    return " ".join(parts)


def _stays_up(ask: Ask, trials: Sequence[Trial], requests: Sequence[Request]) -> _Answer:
    relevant = [t for t in trials if t.kind not in ("pool", "fault", "pin") and _counts(t)]
    if not relevant:
        return "no trial used the backends", Verdict.UNKNOWN, [], {}
    restarted = [trial for trial in relevant if any(trial.details.get(RESTARTS, {}).values())]
    lost = [t for t in relevant if t.diagnosis and t.diagnosis.failure_class in _LOST and t not in restarted]
    if restarted or lost:
        reasons = [
            f"{node} was started anew {count}x in {trial.id}{_why(trial)}"
            for trial in restarted
            for node, count in trial.details[RESTARTS].items()
            if count
        ]
        reasons += [f"a backend was lost in {trial.id}{_why(trial)}" for trial in lost]
        return "; ".join(reasons), Verdict.NO, [*restarted, *lost], {}
    nodes = ", ".join(sorted({node for trial in relevant for node in trial.details.get(RESTARTS, {})}))
    if not nodes:
        answer = "none was lost, but no monitor reported whether one was restarted"
        return answer, Verdict.UNKNOWN, relevant, {}
    answer = f"no backend was lost, and none of {nodes} restarted, in {len(relevant)} trials"
    return answer, Verdict.YES, relevant, {}


def _pins(ask: Ask, trials: Sequence[Trial], requests: Sequence[Request]) -> _Answer:
    first = next((number for number, trial in enumerate(trials) if trial.kind == "pin"), len(trials))
    if first == len(trials):
        builds = sorted({build for trial in trials if (build := _build(trial))})
        other = f"{builds[0]},ANOTHER" if builds else "THIS,ANOTHER"
        answer = f"one pin was tried; `harness run founding --pins {other}` takes two in turns"
        return answer, Verdict.UNKNOWN, [], {}
    switches = [trial for trial in trials[first:] if trial.kind == "pin"]
    failed_switches = [trial for trial in switches if trial.outcome is Outcome.FAILED]
    by_build = _by_build(ask, trials[first:], requests)
    evidence = [*(trial for results in by_build.values() for trial in results.trials), *failed_switches]
    evidence.sort(key=lambda trial: trials.index(trial))
    loaded = [build for build, results in by_build.items() if results.loads_s]
    if len(loaded) < 2:
        answer = failed_switches[0].answer if failed_switches else "fewer than two builds were loaded"
        return answer, Verdict.UNKNOWN, evidence, {}
    base, *others = loaded
    parts, figures, differences = [], dict[str, float](), list[Difference]()
    for other_build in others:
        before, after = by_build[base], by_build[other_build]
        for name, values in (
            ("cold load", (before.loads_s, after.loads_s)),
            ("tokens/s", (before.rates, after.rates)),
        ):
            if change := difference(*values):
                differences.append(change)
                parts.append(f"{name} of {other_build} is {_ratio(change)} that of {base}")
                figures[f"{name.replace(' ', '_')}_{other_build}_to_{base}"] = change.ratio
    failed = {build: results.failed for build, results in by_build.items() if results.failed}
    parts += [f"failed with {build}: {', '.join(ids)}" for build, ids in failed.items()]
    differs = any(change.beyond_noise for change in differences) or 0 < len(failed) < len(loaded)
    decided = all(change.low is not None for change in differences) and not failed_switches
    verdict = Verdict.YES if differs else Verdict.NO if decided else Verdict.UNKNOWN
    return "; ".join(parts), verdict, evidence, figures


def _ratio(change: Difference) -> str:
    if change.low is None:
        return f"{change.ratio:.2f}x (too few to tell from noise)"
    within = "beyond" if change.beyond_noise else "within"
    return f"{change.ratio:.2f}x ({change.low:.2f} to {change.high:.2f}, {within} the noise)"


@dataclass
class _BuildResults:
    """What one build of llama.cpp did with a model."""

    trials: list[Trial] = field(default_factory=list)
    loads_s: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    """Tokens per second, one a request."""
    failed: list[str] = field(default_factory=list)


def _by_build(ask: Ask, trials: Sequence[Trial], requests: Sequence[Request]) -> dict[int, _BuildResults]:
    """The results of each build, in the order the builds came."""
    by_build: dict[int, _BuildResults] = {}
    build: int | None = None
    for trial in trials:
        if trial.kind == "pin":
            build = trial.step.get("build") if trial.outcome is Outcome.PASSED else None
        if build is None or trial.model != ask.model or trial.kind not in ("load", "inference"):
            continue
        results = by_build.setdefault(build, _BuildResults())
        results.trials.append(trial)
        if trial.outcome is Outcome.FAILED:
            results.failed.append(trial.id)
        elif trial.kind == "load" and "load_s" in trial.metrics:
            results.loads_s.append(trial.metrics["load_s"])
        else:
            measured = [r for r in requests if r.trial == trial.id and not r.warmup]
            results.rates.extend(1 / r.tpot_s for r in measured if r.tpot_s)
    return by_build


_QUESTIONS: dict[str, tuple[str, Callable[[Ask, Sequence[Trial], Sequence[Request]], _Answer]]] = {
    "answers": ("Does {model} answer without a crash?", _answers),
    "fits": ("Does {model} fit {nodes} nodes?", _fits),
    "loads": (
        "Does {model} load over the backends, how long does it take, and with how much swap?",
        _how_long,
    ),
    "stays_up": ("Does each backend stay up?", _stays_up),
    "pins": ("Does one build of llama.cpp behave differently from another with {model}?", _pins),
}


def _counts(trial: Trial) -> bool:
    """Whether a trial was expected to go well, and was tried. An unload always expects its stop."""
    expected_well = trial.expected in (None, FailureClass.STOPPED)
    return expected_well and trial.outcome is not Outcome.SKIPPED and "starved" not in trial.details


def _loads(ask: Ask, trials: Sequence[Trial]) -> list[Trial]:
    """Loads that were expected to go well, also those that were not tried."""
    loads = [trial for trial in trials if trial.kind == "load" and trial.model == ask.model]
    return [trial for trial in loads if not trial.expected and not trial.step.get("starve")]


def _build(trial: Trial) -> int | None:
    state = trial.coordinator
    return state.report.build if state and state.report else None


def _each(values: Sequence[float]) -> str:
    return f" (each: {', '.join(f'{value:.1f}' for value in values)})" if len(values) > 1 else ""


def _why(trial: Trial) -> str:
    return f" ({trial.diagnosis.failure_class})" if trial.diagnosis else f" ({trial.answer})"


def _ready(loads: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in loads if trial.outcome is Outcome.PASSED and "load_s" in trial.metrics]


def _swap_verdict(ready: Sequence[Trial]) -> Verdict:
    """Yes only where no backend was in swap, and a monitor reported that."""
    return Verdict.YES if most_backend_swap(ready) == 0 else Verdict.PARTLY


def _swap_figure(ready: Sequence[Trial]) -> dict[str, float]:
    swap = most_backend_swap(ready)
    return {} if swap is None else {"swap_bytes": float(swap)}
