"""A run's questions and answers, from trials as a run keeps them."""

import json
from typing import Any

import pytest
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState, LoadReport
from harness.contracts.diagnosis import Confidence, Diagnosis, FailureClass
from harness.contracts.run_records import Outcome, Question, Request, Trial
from harness.errors import HarnessError
from harness.trials.kinds.release_switch import ROUNDS, with_pins
from harness.trials.profile.profile import Ask, Profile, load_profile
from harness.trials.profile.steps import InferenceStep, LoadStep, PinStep
from harness.trials.questions import answer_questions, questions_of

GIB = 1 << 30


def load(name: str, model: str = "m", outcome: Outcome = Outcome.PASSED, **more: Any) -> Trial:
    base: dict[str, Any] = {"id": name, "kind": "load", "model": model, "started_ns": 0, "ended_ns": 1}
    details = {"step": json.dumps(more.pop("step", {})), **more.pop("details", {})}
    return Trial.model_validate(
        {**base, "outcome": outcome, "answer": f"{name}'s answer", "details": details, **more}
    )


def told(swap: int = 0) -> dict[str, dict[str, int]]:
    """What the monitor of one node had to say."""
    return {"a": {"rpc_swap_bytes": swap}}


def diagnosed(failure: FailureClass) -> Diagnosis:
    return Diagnosis(failure_class=failure, evidence=[], confidence=Confidence.CERTAIN, advice="")


def requests(trial: str, rates: list[float | None]) -> list[Request]:
    """One of two tokens at each rate; None is one that failed."""
    return [
        Request(
            trial=trial,
            index=index,
            route="coordinator",
            model="m",
            sent_ns=0,
            token_ns=[0, round(1e9 / rate)] if rate else [],
            completion_tokens=2 if rate else None,
            error=None if rate else "the stream broke",
        )
        for index, rate in enumerate(rates, start=1)
    ]


def ask(question: Ask, trials: list[Trial], sent: list[Request] | None = None) -> Question:
    step = LoadStep(kind="load", model="m")
    (found,) = answer_questions(Profile(trials=[step], questions=[question]), trials, sent or [])
    return found


@pytest.mark.parametrize(
    ("rates", "verdict", "answer"),
    [
        ([9, 9, 9, 9, 9], "yes", "5 of 5 requests were answered"),
        ([9, 9], "partly", "2 of 2 requests were answered (5 were asked for)"),
        ([9, None, 9, 9, 9], "partly", "4 of 5 requests were answered"),
        ([None], "no", "0 of 1 requests were answered (5 were asked for)"),
        ([], "unknown", "no request was sent to m"),
    ],
)
def test_model_answers_so_many_times_out_of_so_many(
    rates: list[float | None], verdict: str, answer: str
) -> None:
    trial = load("02-inference", kind="inference")
    found = ask(Ask(ask="answers", model="m", times=5), [trial], requests(trial.id, rates))
    assert (found.verdict, found.answer) == (verdict, answer)
    assert found.trials == ["02-inference"]


@pytest.mark.parametrize("kind", ["inference", "unload"])
def test_crash_is_never_a_yes_though_every_request_was_answered(kind: str) -> None:
    asking = load("02", kind="inference")
    crashed = load(
        "03", kind=kind, outcome=Outcome.FAILED, expected=None, diagnosis=diagnosed(FailureClass.SEGFAULT)
    )
    found = ask(Ask(ask="answers", model="m"), [asking, crashed], requests("02", [9, 9]))
    assert found.verdict == "partly"
    assert found.answer.endswith("the first trial that failed: 03 (segfault)")


def test_model_fits_where_it_came_up_and_partly_where_a_backend_swaps() -> None:
    up = load(
        "01", metrics={"load_s": 9.0}, step={"nodes": 3}, details={"nodes": ["a", "b", "c"]}, peak=told()
    )
    fits = Ask(ask="fits", model="m", nodes=3)
    assert ask(fits, [up]).answer.startswith("it came up over a, b, c, no rpc-server in swap")
    assert ask(fits, [up]).verdict == "yes"
    swaps = up.model_copy(update={"peak": told(GIB)})
    assert ask(fits, [swaps]).verdict == "partly"
    assert "rpc-server in swap: up to a 1,024 MiB" in ask(fits, [swaps]).answer
    assert ask(fits, [up.model_copy(update={"peak": {}})]).verdict == "partly", "no monitor told of swap"
    assert ask(Ask(ask="fits", model="m", nodes=4), [up]).verdict == "unknown", "three are not four"
    step = json.dumps({"nodes": 3, "starve": {"node": "a"}})
    starved = swaps.model_copy(update={"details": {**up.details, "step": step}})
    assert ask(fits, [up, starved]).verdict == "yes", "a node that was starved on purpose says nothing of it"


@pytest.mark.parametrize(
    ("outcome", "more", "verdict"),
    [
        (Outcome.SKIPPED, {"details": {"refused": "does_not_fit"}}, "no"),
        (Outcome.FAILED, {"diagnosis": diagnosed(FailureClass.OOM_KILLED)}, "no"),
        (Outcome.FAILED, {"diagnosis": diagnosed(FailureClass.BACKEND_UNREACHABLE)}, "unknown"),
        (Outcome.SKIPPED, {}, "unknown"),
    ],
)
def test_only_want_of_memory_means_that_a_model_does_not_fit(
    outcome: Outcome, more: dict[str, Any], verdict: str
) -> None:
    found = ask(Ask(ask="fits", model="m", nodes=3), [load("01", outcome=outcome, step={"nodes": 3}, **more)])
    assert (found.verdict, found.answer) == (verdict, "01's answer")


def test_loads_are_told_apart_by_caches_nodes_and_build_and_failed_ones_have_no_time() -> None:
    def up(name: str, load_s: float, cache: str, nodes: int, build: int = 6751) -> Trial:
        state = CoordinatorState(phase=CoordinatorPhase.READY, report=LoadReport(build=build))
        details = {"cache": cache, "nodes": list("abcd"[:nodes])}
        return load(name, metrics={"load_s": load_s}, details=details, coordinator=state, peak=told())

    cold = [up("01", 30.0, "cold", 4), up("02", 32.0, "cold", 4)]
    found = ask(Ask(ask="loads", model="m"), [*cold, up("03", 8.0, "warm", 4)])
    assert found.answer.startswith("cold in 31.0 s (each: 30.0, 32.0), warm in 8.0 s; no rpc-server in swap")
    assert found.figures == {"load_s, cold": 31.0, "load_s, warm": 8.0, "swap_bytes": 0.0}
    mixed = ask(
        Ask(ask="loads", model="m"), [*cold, up("03", 9.0, "cold", 3), up("04", 7.0, "cold", 4, 6792)]
    )
    assert "cold over 3 nodes with build 6751 in 9.0 s" in mixed.answer
    assert "cold over 4 nodes with build 6792 in 7.0 s" in mixed.answer
    failed = load(
        "05", outcome=Outcome.FAILED, metrics={"load_s": 2.0}, diagnosis=diagnosed(FailureClass.HUNG)
    )
    part = ask(Ask(ask="loads", model="m"), [*cold, failed])
    assert (part.verdict, part.answer.endswith("05 failed (hung)")) == ("partly", True)
    assert ask(Ask(ask="loads", model="m"), [failed]).verdict == "no"


def test_backend_that_was_started_anew_did_not_stay_up_and_the_trial_says_why() -> None:
    calm = load("01", details={"backend_restarts": {"node3": 0}})
    assert ask(Ask(ask="stays_up"), [calm]).verdict == "yes"
    assert ask(Ask(ask="stays_up"), [load("01")]).verdict == "unknown", "no monitor: nobody knows"
    restarted = load(
        "02",
        outcome=Outcome.FAILED,
        details={"backend_restarts": {"node3": 2, "node1": 0}},
        diagnosis=diagnosed(FailureClass.OOM_KILLED),
    )
    found = ask(Ask(ask="stays_up"), [calm, restarted])
    assert (found.verdict, found.answer) == ("no", "node3 was started anew 2x in 02 (oom_killed)")
    assert found.trials == ["02"]
    coordinator = load("03", outcome=Outcome.FAILED, diagnosis=diagnosed(FailureClass.OOM_KILLED))
    assert ask(Ask(ask="stays_up"), [calm, coordinator]).verdict == "yes", "the coordinator is no backend"
    meant = restarted.model_copy(update={"expected": "oom_killed"})
    assert ask(Ask(ask="stays_up"), [calm, meant]).verdict == "yes", "a failure that was asked for"


def pinned(number: int, build: int, load_s: float) -> list[Trial]:
    pin = load(f"{number}-pin", kind="pin", step={"build": build})
    up = load(f"{number}-load", metrics={"load_s": load_s}, details={"cache": "cold"})
    return [pin, up, load(f"{number}-inference", kind="inference")]


def in_turns(rates: list[list[float | None]], rounds: int = 3) -> tuple[list[Trial], list[Request]]:
    """Two builds in turns, each asked at its rates; before them the first build alone, much faster."""
    numbers = range(2 * rounds)
    early = [load("00-load", metrics={"load_s": 1.0}), load("00-inference", kind="inference")]
    trials = [trial for n in numbers for trial in pinned(n, [6751, 6792][n % 2], 10.0 + n)]
    sent = [r for n in numbers for r in requests(f"{n}-inference", rates[n % 2])]
    return [*early, *trials], [*requests("00-inference", [50.0] * 20), *sent]


def test_pins_differ_only_beyond_the_noise_and_only_what_ran_in_turns_is_compared() -> None:
    pins = Ask(ask="pins", model="m")
    same = ask(pins, *in_turns([[5.0, 5.1, 4.9], [5.0, 5.1, 4.9]]))
    assert same.verdict == "no"
    assert "tokens/s of 6792 is 1.00x (" in same.answer
    assert "within the noise" in same.answer
    assert ask(pins, *in_turns([[5.0, 5.1, 4.9], [3.0, 3.1, 2.9]])).verdict == "yes"
    few = ask(pins, *in_turns([[5.0], [2.0]], rounds=1))
    assert (few.verdict, "too few to tell" in few.answer) == ("unknown", True)


def test_pin_that_fails_differs_where_the_other_does_not_and_one_that_cannot_be_put_up_is_named() -> None:
    trials, sent = in_turns([[5.0, 5.1, 4.9], [5.0, 5.1, 4.9]])
    broken = [
        t.model_copy(update={"outcome": Outcome.FAILED}) if t.id in ("1-inference", "3-inference") else t
        for t in trials
    ]
    found = ask(Ask(ask="pins", model="m"), broken, sent)
    assert (found.verdict, "failed with 6792: 1-inference, 3-inference" in found.answer) == ("yes", True)
    stuck = [
        load("0-pin", kind="pin", step={"build": 6751}),
        load("1-pin", kind="pin", outcome=Outcome.FAILED),
    ]
    assert ask(Ask(ask="pins", model="m"), stuck).answer == "1-pin's answer"
    one = ask(Ask(ask="pins", model="m"), [load("01")])
    assert (one.verdict, "--pins" in one.answer) == ("unknown", True)


def test_pins_are_tried_in_turns_and_the_first_comes_back() -> None:
    profile = Profile(trials=[LoadStep(kind="load", model="m")], questions=[Ask(ask="pins", model="m")])
    trials = with_pins(profile, [6751, 6792]).trials
    assert [step.build for step in trials if isinstance(step, PinStep)] == [6751, 6792] * ROUNDS + [6751]
    assert [step.kind for step in trials[1:5]] == ["pin", "load", "inference", "unload"]
    with pytest.raises(HarnessError, match="a question 'pins'"):
        with_pins(profile.model_copy(update={"questions": []}), [6751, 6792])


def test_profile_without_questions_is_asked_what_its_trials_can_tell() -> None:
    steps = [
        LoadStep(kind="load", model="m"),
        InferenceStep(kind="inference", model="m", prompt_tokens=35, generated_tokens=1),
    ]
    found = [(one.ask, one.model) for one in questions_of(Profile(trials=steps))]
    assert found == [("answers", "m"), ("loads", "m"), ("stays_up", None)]


def test_founding_asks_all_open_questions_of_whatever_models_are_named() -> None:
    profile = load_profile("founding", {"70b": "llama3.1:70b"})[2]
    assert profile.model_names == ["13b-q4_0", "llama3.1:70b"]
    assert {one.ask for one in profile.questions} == {"answers", "fits", "loads", "stays_up", "pins"}
    assert {one.nodes for one in profile.questions if one.ask == "fits"} == {3, 4}
    assert {one.model for one in profile.questions if one.model} == set(profile.model_names)
    with pytest.raises(HarnessError, match=r"no name '7b' for a model; it has: 13b, 70b"):
        load_profile("founding", {"7b": "x"})
