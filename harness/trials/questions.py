"""A run's questions and their answers: each from its trials alone, with the trials that prove it."""

from collections.abc import Iterator, Sequence
from statistics import median

from harness.runs.schema import Outcome, Question, Request, Trial, Verdict
from harness.runs.statistics import difference
from harness.trials.load import REFUSED
from harness.trials.profile import Ask, Profile
from harness.trials.steps import LoadStep

RESTARTS = "backend_restarts"
"""In a trial's details: how often the unit of each backend was started anew while it ran."""


def asked(profile: Profile) -> list[Ask]:
    """What a profile asks: what it says, else what its trials can tell."""
    if profile.questions:
        return profile.questions
    loads = [step for step in profile.trials if isinstance(step, LoadStep) and not step.expected]
    models = list(dict.fromkeys(step.model for step in profile.trials))
    found = [Ask(ask="answers", model=model) for model in models]
    found += [Ask(ask="loads", model=model) for model in dict.fromkeys(step.model for step in loads)]
    return [*found, *([Ask(ask="stays_up")] if loads else [])]


def answered(profile: Profile, trials: Sequence[Trial], requests: Sequence[Request]) -> list[Question]:
    """Each question of the profile with its answer."""
    return [_ANSWERS[ask.ask](ask, f"q{number}", trials, requests) for number, ask in _numbered(profile)]


def _numbered(profile: Profile) -> Iterator[tuple[int, Ask]]:
    return iter(enumerate(asked(profile), start=1))


def _answers(ask: Ask, id_: str, trials: Sequence[Trial], requests: Sequence[Request]) -> Question:
    """Does a model answer without a crash, N times out of N?"""
    mine = [t for t in trials if t.model == ask.model and t.kind in _ASKING and not t.expected]
    ids = {trial.id for trial in mine if trial.outcome is not Outcome.SKIPPED}
    measured = [r for r in requests if r.trial in ids and not r.warmup]
    good = [r for r in measured if r.error is None]
    text = f"Does {ask.model} answer without a crash?"
    if not measured:
        return _unknown(id_, text, mine, f"no request was sent to {ask.model}")
    failed = [trial for trial in mine if trial.outcome is Outcome.FAILED and trial.diagnosis]
    why = f"; the first trial that failed: {failed[0].id}{_why(failed[0])}" if failed else ""
    wanted = f" ({ask.times} were asked for)" if ask.times and len(measured) < ask.times else ""
    every = len(good) == len(measured) and not wanted
    verdict = Verdict.YES if every else Verdict.PARTLY if good else Verdict.NO
    figures = {"answered": float(len(good)), "asked": float(len(measured))}
    answer = f"{len(good)} of {len(measured)} requests were answered{wanted}{why}"
    return Question(id=id_, text=text, answer=answer, verdict=verdict, trials=_ids(mine), figures=figures)


def _fits(ask: Ask, id_: str, trials: Sequence[Trial], requests: Sequence[Request]) -> Question:
    """Does a model fit so many nodes?"""
    mine = [t for t in _loads(ask, trials) if ask.nodes is None or t.details.get("wanted_nodes") == ask.nodes]
    text = f"Does {ask.model} fit {ask.nodes or 'these'} nodes?"
    ran = [trial for trial in mine if trial.outcome is not Outcome.SKIPPED]
    if up := [trial for trial in ran if trial.outcome is Outcome.PASSED and "load_s" in trial.metrics]:
        swap = max(map(_swap, up))
        verdict = Verdict.PARTLY if swap > _SWAP_NOISE else Verdict.YES
        over = ", ".join(up[0].details.get("nodes", []))
        answer = f"it came up over {over}, {_in_swap(swap)}"
        figures = {"swap_bytes": float(swap)}
        return Question(id=id_, text=text, answer=answer, verdict=verdict, trials=_ids(up), figures=figures)
    if refused := [trial for trial in mine if trial.details.get(REFUSED) == "does_not_fit"]:
        return Question(id=id_, text=text, answer=refused[0].answer, verdict=Verdict.NO, trials=_ids(refused))
    if ran:
        return Question(id=id_, text=text, answer=ran[0].answer, verdict=Verdict.NO, trials=_ids(ran))
    return _unknown(id_, text, mine, mine[0].answer if mine else "no load was tried")


def _how_long(ask: Ask, id_: str, trials: Sequence[Trial], requests: Sequence[Request]) -> Question:
    """How long does a model load, with how much swap?"""
    text = f"How long does {ask.model} load, and with how much swap?"
    mine = [trial for trial in _loads(ask, trials) if "load_s" in trial.metrics]
    if not mine:
        every = _loads(ask, trials)
        return _unknown(id_, text, every, every[0].answer if every else "no load was tried")
    said, figures = [], dict[str, float]()
    for cache in ("cold", "warm"):
        values = [trial.metrics["load_s"] for trial in mine if trial.details.get("cache") == cache]
        if values:
            figures[f"load_s_{cache}"] = median(values)
            each = f" (each: {', '.join(f'{value:.1f}' for value in values)})" if len(values) > 1 else ""
            said.append(f"{cache} in {median(values):.1f} s{each}")
    figures["swap_bytes"] = swap = float(max(map(_swap, mine)))
    passed = all(trial.outcome is Outcome.PASSED for trial in mine)
    return Question(
        id=id_,
        text=text,
        answer=f"{', '.join(said)}; {_in_swap(swap)}",
        verdict=Verdict.YES if passed and swap <= _SWAP_NOISE else Verdict.PARTLY,
        trials=_ids(mine),
        figures=figures,
    )


def _stays_up(ask: Ask, id_: str, trials: Sequence[Trial], requests: Sequence[Request]) -> Question:
    """Does each backend stay up, and if not, why?"""
    text = "Does each backend stay up?"
    ran = [trial for trial in trials if trial.outcome is not Outcome.SKIPPED and trial.kind != "pool"]
    if not ran:
        return _unknown(id_, text, [], "no trial touched the backends")
    guilty = [trial for trial in ran if trial.details.get(RESTARTS)]
    lost = [t for t in ran if t.diagnosis and t.diagnosis.failure_class in _LOST and t not in guilty]
    if not guilty and not lost:
        answer = f"no backend was restarted or lost in {len(ran)} trials"
        return Question(id=id_, text=text, answer=answer, verdict=Verdict.YES, trials=_ids(ran))
    said = [
        f"{node} was started anew {count}x in {trial.id}{_why(trial)}"
        for trial in guilty
        for node, count in trial.details[RESTARTS].items()
    ]
    said += [f"a backend was lost in {trial.id}{_why(trial)}" for trial in lost]
    meant = all(trial.kind == "fault" for trial in [*guilty, *lost])
    verdict = Verdict.PARTLY if meant else Verdict.NO
    return Question(id=id_, text=text, answer="; ".join(said), verdict=verdict, trials=_ids([*guilty, *lost]))


def _pins(ask: Ask, id_: str, trials: Sequence[Trial], requests: Sequence[Request]) -> Question:
    """Does one pin behave differently from another?"""
    text = f"Does one build of llama.cpp behave differently from another with {ask.model}?"
    rates, loads, seen = dict[int, list[float]](), dict[int, list[float]](), list[Trial]()
    build = None
    for trial in trials:
        if trial.model != ask.model:
            continue
        if trial.kind == "load" and trial.coordinator and trial.coordinator.report:
            build = trial.coordinator.report.build
            if build is not None and "load_s" in trial.metrics and trial.details.get("cache") == "cold":
                loads.setdefault(build, []).append(trial.metrics["load_s"])
                seen.append(trial)
        if trial.kind == "inference" and build is not None and not trial.expected:
            mine = [r for r in requests if r.trial == trial.id and not r.warmup and r.tpot_s]
            rates.setdefault(build, []).extend(1 / r.tpot_s for r in mine if r.tpot_s)
            seen.append(trial)
    if len(loads) < 2:
        which = f" ({next(iter(loads))})" if loads else ""
        return _unknown(id_, text, seen, f"one pin was tried{which}; --pins 6751,6792 takes two in turns")
    first, *others = loads
    said, figures, differs = [], dict[str, float](), False
    for other in others:
        for name, values in (("cold load", loads), ("tokens/s", rates)):
            found = difference(values.get(first, []), values.get(other, []))
            if found is None:
                continue
            differs |= found.beyond_noise
            interval = f" ({found.low:.2f} to {found.high:.2f})" if found.low is not None else ""
            within = "beyond" if found.beyond_noise else "within"
            said.append(
                f"{name} of {other} is {found.ratio:.2f}x that of {first}{interval}, {within} the noise"
            )
            figures[f"{name.replace(' ', '_')}_{other}_to_{first}"] = found.ratio
    failed = [trial.id for trial in seen if trial.outcome is Outcome.FAILED]
    said += [f"failed: {', '.join(failed)}"] if failed else []
    verdict = Verdict.YES if differs or failed else Verdict.NO
    return Question(
        id=id_, text=text, answer="; ".join(said), verdict=verdict, trials=_ids(seen), figures=figures
    )


_ANSWERS = {"answers": _answers, "fits": _fits, "loads": _how_long, "stays_up": _stays_up, "pins": _pins}
_ASKING = ("pool", "inference", "soak")
_LOST = ("backend_lost", "backend_unreachable", "backend_stalled", "oom_killed", "network_partition")
_SWAP_NOISE = 16 << 20
"""Pages that the kernel puts aside without need."""


def _loads(ask: Ask, trials: Sequence[Trial]) -> list[Trial]:
    """Loads that were meant to go well."""
    mine = [trial for trial in trials if trial.kind == "load" and trial.model == ask.model]
    return [trial for trial in mine if not trial.expected and "starved" not in trial.details]


def _swap(trial: Trial) -> int:
    return max((peak.get("rpc_swap_bytes", 0) for peak in trial.peak.values()), default=0)


def _in_swap(size: float) -> str:
    if size <= _SWAP_NOISE:
        return "no backend in swap"
    return f"up to {size / 2**20:,.0f} MiB of a backend in swap"


def _why(trial: Trial) -> str:
    return f" ({trial.diagnosis.failure_class})" if trial.diagnosis else ""


def _ids(trials: Sequence[Trial]) -> list[str]:
    return [trial.id for trial in trials]


def _unknown(id_: str, text: str, trials: Sequence[Trial], why: str) -> Question:
    return Question(id=id_, text=text, answer=why, verdict=Verdict.UNKNOWN, trials=_ids(trials))
