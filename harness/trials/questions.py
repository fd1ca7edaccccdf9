"""A run's questions and their answers: each from its trials alone, with the trials that prove it."""

import json
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from harness.contracts.diagnosis import FailureClass
from harness.contracts.run_records import Outcome, Question, Request, Trial, Verdict
from harness.runs.metrics import SWAP_NOISE_BYTES
from harness.runs.statistics import Difference, difference
from harness.trials.kinds.load import REFUSED
from harness.trials.profile.profile import Ask, Profile
from harness.trials.profile.steps import LoadStep

RESTARTS = "backend_restarts"
"""In a trial's details: per backend, how often its unit was started anew meanwhile, where that is known."""

_ASKING = ("pool", "inference", "soak")
_LOST = (
    FailureClass.BACKEND_LOST,
    FailureClass.BACKEND_UNREACHABLE,
    FailureClass.BACKEND_STALLED,
    FailureClass.NETWORK_PARTITION,
)
_TOO_LARGE = (FailureClass.OOM_KILLED, FailureClass.OUT_OF_MEMORY, FailureClass.SWAP_THRASH)


def asked(profile: Profile) -> list[Ask]:
    """What a profile asks: what it says, else what its trials can tell."""
    if profile.questions:
        return profile.questions
    loads = [step for step in profile.trials if isinstance(step, LoadStep) and not step.expected]
    models = list(dict.fromkeys(step.model for step in profile.trials if step.kind in _ASKING))
    found = [Ask(ask="answers", model=model) for model in models]
    found += [Ask(ask="loads", model=model) for model in dict.fromkeys(step.model for step in loads)]
    return [*found, *([Ask(ask="stays_up")] if loads else [])]


def answered(profile: Profile, trials: Sequence[Trial], requests: Sequence[Request]) -> list[Question]:
    """Each question of the profile with its answer."""
    return [
        _ANSWERS[ask.ask](ask, f"q{number}", trials, requests)
        for number, ask in enumerate(asked(profile), start=1)
    ]


def _answers(ask: Ask, id_: str, trials: Sequence[Trial], requests: Sequence[Request]) -> Question:
    """Does a model answer without a crash, N times out of N? How its coordinators end counts too."""
    kinds = (*_ASKING, "unload")
    mine = [t for t in trials if t.model == ask.model and t.kind in kinds and _counts(t)]
    ids = {trial.id for trial in mine}
    measured = [r for r in requests if r.trial in ids and not r.warmup]
    good = [r for r in measured if r.error is None]
    text = f"Does {ask.model} answer without a crash?"
    if not measured:
        return _unknown(id_, text, mine, f"no request was sent to {ask.model}")
    failed = [trial for trial in mine if trial.outcome is Outcome.FAILED]
    why = f"; the first trial that failed: {failed[0].id}{_why(failed[0])}" if failed else ""
    wanted = f" ({ask.times} were asked for)" if ask.times and len(measured) < ask.times else ""
    every = len(good) == len(measured) and not wanted and not failed
    return Question(
        id=id_,
        text=text,
        answer=f"{len(good)} of {len(measured)} requests were answered{wanted}{why}",
        verdict=Verdict.YES if every else Verdict.PARTLY if good else Verdict.NO,
        trials=_ids(mine),
        figures={"answered": float(len(good)), "asked": float(len(measured))},
    )


def _fits(ask: Ask, id_: str, trials: Sequence[Trial], requests: Sequence[Request]) -> Question:
    """Does a model fit so many nodes?"""
    mine = [t for t in _loads(ask, trials) if ask.nodes in (None, _step(t).get("nodes"))]
    text = f"Does {ask.model} fit {ask.nodes or 'these'} nodes?"
    if up := [trial for trial in mine if trial.outcome is Outcome.PASSED and "load_s" in trial.metrics]:
        swap = _most_swap(up)
        over = ", ".join(up[0].details.get("nodes", []))
        return Question(
            id=id_,
            text=text,
            answer=f"it came up over {over}, {_in_swap(swap)}",
            verdict=Verdict.PARTLY if swap is None or swap > SWAP_NOISE_BYTES else Verdict.YES,
            trials=_ids(up),
            figures={} if swap is None else {"swap_bytes": float(swap)},
        )
    large = [
        trial
        for trial in mine
        if trial.details.get(REFUSED) == "does_not_fit"
        or (trial.diagnosis and trial.diagnosis.failure_class in _TOO_LARGE)
    ]
    if large:
        answer = large[0].answer
        return Question(id=id_, text=text, answer=answer, verdict=Verdict.NO, trials=_ids(large))
    return _unknown(id_, text, mine, mine[0].answer if mine else "no load was tried")


def _how_long(ask: Ask, id_: str, trials: Sequence[Trial], requests: Sequence[Request]) -> Question:
    """Does a model load over the backends, how long does that take, with how much swap?"""
    text = f"Does {ask.model} load over the backends, how long does it take, and with how much swap?"
    every = [trial for trial in _loads(ask, trials) if trial.outcome is not Outcome.SKIPPED]
    up = [trial for trial in every if trial.outcome is Outcome.PASSED and "load_s" in trial.metrics]
    failed = [trial for trial in every if trial.outcome is Outcome.FAILED]
    told = [f"{trial.id} failed{_why(trial)}" for trial in failed]
    if not up:
        if failed:
            answer = "; ".join(told)
            return Question(id=id_, text=text, answer=answer, verdict=Verdict.NO, trials=_ids(failed))
        skipped = _loads(ask, trials)
        return _unknown(id_, text, skipped, skipped[0].answer if skipped else "no load was tried")
    groups: dict[str, list[float]] = {}
    for trial in up:
        groups.setdefault(_alike(trial, up), []).append(trial.metrics["load_s"])
    said = [f"{name} in {median(values):.1f} s{_each(values)}" for name, values in groups.items()]
    swap = _most_swap(up)
    figures = {f"load_s, {name}": median(values) for name, values in groups.items()}
    return Question(
        id=id_,
        text=text,
        answer="; ".join([", ".join(said), _in_swap(swap), *told]),
        verdict=Verdict.PARTLY if failed or swap is None or swap > SWAP_NOISE_BYTES else Verdict.YES,
        trials=_ids([*up, *failed]),
        figures=figures if swap is None else {**figures, "swap_bytes": float(swap)},
    )


def _alike(trial: Trial, among: Sequence[Trial]) -> str:
    """What sets this load apart from the others: caches, and nodes and build where they differ."""
    parts = [str(trial.details.get("cache", "load"))]
    if len({len(one.details.get("nodes", ())) for one in among}) > 1:
        parts.append(f"over {len(trial.details.get('nodes', ()))} nodes")
    if len({_build(one) for one in among}) > 1:
        parts.append(f"with build {_build(trial)}")
    return " ".join(parts)


def _stays_up(ask: Ask, id_: str, trials: Sequence[Trial], requests: Sequence[Request]) -> Question:
    """Does each backend stay up, and if not, why?"""
    text = "Does each backend stay up?"
    ran = [t for t in trials if t.kind not in ("pool", "fault", "pin") and _counts(t)]
    if not ran:
        return _unknown(id_, text, [], "no trial touched the backends")
    guilty = [trial for trial in ran if any(trial.details.get(RESTARTS, {}).values())]
    lost = [t for t in ran if t.diagnosis and t.diagnosis.failure_class in _LOST and t not in guilty]
    if not guilty and not lost:
        known = {node for trial in ran for node in trial.details.get(RESTARTS, {})}
        if not known:
            return _unknown(id_, text, ran, "none was lost, but no monitor said whether one was restarted")
        answer = (
            f"no backend was lost, and none of {', '.join(sorted(known))} restarted, in {len(ran)} trials"
        )
        return Question(id=id_, text=text, answer=answer, verdict=Verdict.YES, trials=_ids(ran))
    said = [
        f"{node} was started anew {count}x in {trial.id}{_why(trial)}"
        for trial in guilty
        for node, count in trial.details[RESTARTS].items()
        if count
    ]
    said += [f"a backend was lost in {trial.id}{_why(trial)}" for trial in lost]
    proof = _ids([*guilty, *lost])
    return Question(id=id_, text=text, answer="; ".join(said), verdict=Verdict.NO, trials=proof)


def _pins(ask: Ask, id_: str, trials: Sequence[Trial], requests: Sequence[Request]) -> Question:
    """Does one pin behave differently from another? Only what ran in turns is compared."""
    text = f"Does one build of llama.cpp behave differently from another with {ask.model}?"
    first = next((number for number, trial in enumerate(trials) if trial.kind == "pin"), len(trials))
    if first == len(trials):
        builds = sorted({build for trial in trials if (build := _build(trial))})
        other = f"{builds[0]},ANOTHER" if builds else "THIS,ANOTHER"
        why = f"one pin was tried; `harness run founding --pins {other}` takes two in turns"
        return _unknown(id_, text, [], why)
    rates, loads, seen, failed = _by_build(ask, trials[first:], requests)
    gone = [trial for trial in trials[first:] if trial.kind == "pin" and trial.outcome is Outcome.FAILED]
    if len(loads) < 2:
        return _unknown(
            id_, text, [*gone, *seen], gone[0].answer if gone else "fewer than two builds were loaded"
        )
    base, *others = loads
    said, figures = [], dict[str, float]()
    differences = []
    for other_build in others:
        for name, values in (("cold load", loads), ("tokens/s", rates)):
            found = difference(values.get(base, []), values.get(other_build, []))
            if found:
                differences.append(found)
                said.append(f"{name} of {other_build} is {_ratio(found)} that of {base}")
                figures[f"{name.replace(' ', '_')}_{other_build}_to_{base}"] = found.ratio
    differs = any(one.beyond_noise for one in differences)
    told = all(one.low is not None for one in differences)
    said += [f"failed with {build}: {', '.join(ids)}" for build, ids in failed.items()]
    apart = differs or 0 < len(failed) < len(loads)
    verdict = Verdict.YES if apart else Verdict.NO if told and not gone else Verdict.UNKNOWN
    proof = _ids([*seen, *gone])
    return Question(id=id_, text=text, answer="; ".join(said), verdict=verdict, trials=proof, figures=figures)


def _ratio(found: Difference) -> str:
    if found.low is None:
        return f"{found.ratio:.2f}x (too few to tell from noise)"
    within = "beyond" if found.beyond_noise else "within"
    return f"{found.ratio:.2f}x ({found.low:.2f} to {found.high:.2f}, {within} the noise)"


def _by_build(
    ask: Ask, trials: Sequence[Trial], requests: Sequence[Request]
) -> tuple[dict[int, list[float]], dict[int, list[float]], list[Trial], dict[int, list[str]]]:
    """Rates, cold loads, trials and failures of each build, in the order the builds came."""
    rates: dict[int, list[float]] = {}
    loads: dict[int, list[float]] = {}
    seen: list[Trial] = []
    failed: dict[int, list[str]] = {}
    build: int | None = None
    for trial in trials:
        if trial.kind == "pin":
            build = _step(trial).get("build") if trial.outcome is Outcome.PASSED else None
        if build is None or trial.model != ask.model or trial.kind not in ("load", "inference"):
            continue
        seen.append(trial)
        if trial.outcome is Outcome.FAILED:
            failed.setdefault(build, []).append(trial.id)
        elif trial.kind == "load" and "load_s" in trial.metrics:
            loads.setdefault(build, []).append(trial.metrics["load_s"])
        else:
            mine = [r for r in requests if r.trial == trial.id and not r.warmup]
            rates.setdefault(build, []).extend(1 / r.tpot_s for r in mine if r.tpot_s)
    return rates, loads, seen, failed


_ANSWERS: dict[str, Callable[[Ask, str, Sequence[Trial], Sequence[Request]], Question]] = {
    "answers": _answers,
    "fits": _fits,
    "loads": _how_long,
    "stays_up": _stays_up,
    "pins": _pins,
}


def _counts(trial: Trial) -> bool:
    """Whether a trial was to go well, and was tried at all. An unload always expects its stop."""
    meant = trial.expected in (None, FailureClass.STOPPED)
    return meant and trial.outcome is not Outcome.SKIPPED and "starved" not in trial.details


def _loads(ask: Ask, trials: Sequence[Trial]) -> list[Trial]:
    """Loads that were to go well, those included that were not tried."""
    mine = [trial for trial in trials if trial.kind == "load" and trial.model == ask.model]
    return [trial for trial in mine if not trial.expected and not _step(trial).get("starve")]


def _step(trial: Trial) -> dict[str, Any]:
    """What was asked of the trial."""
    step = trial.details.get("step")
    return dict(json.loads(step)) if isinstance(step, str) else {}


def _build(trial: Trial) -> int | None:
    state = trial.coordinator
    return state.report.build if state and state.report else None


def _most_swap(trials: Sequence[Trial]) -> int | None:
    """The most that any backend had in swap, bytes; None where no monitor told."""
    known = [peak["rpc_swap_bytes"] for t in trials for peak in t.peak.values() if "rpc_swap_bytes" in peak]
    return max(known, default=None)


def _in_swap(size: int | None) -> str:
    if size is None:
        return "swap not known: no monitor told"
    if size <= SWAP_NOISE_BYTES:
        return "no backend in swap"
    return f"up to {size / 2**20:,.0f} MiB of a backend in swap"


def _each(values: Sequence[float]) -> str:
    return f" (each: {', '.join(f'{value:.1f}' for value in values)})" if len(values) > 1 else ""


def _why(trial: Trial) -> str:
    return f" ({trial.diagnosis.failure_class})" if trial.diagnosis else f" ({trial.answer})"


def _ids(trials: Sequence[Trial]) -> list[str]:
    return [trial.id for trial in trials]


def _unknown(id_: str, text: str, trials: Sequence[Trial], why: str) -> Question:
    return Question(id=id_, text=text, answer=why, verdict=Verdict.UNKNOWN, trials=_ids(trials))
