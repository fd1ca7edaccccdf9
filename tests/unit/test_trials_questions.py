"""A run's questions and answers, from trials as a run keeps them."""

from typing import Any

import pytest
from harness.diagnosis.model import Confidence, Diagnosis, FailureClass
from harness.errors import HarnessError
from harness.runs.schema import (
    CoordinatorPhase,
    CoordinatorState,
    LoadReport,
    Outcome,
    Question,
    Request,
    Trial,
)
from harness.trials.pin import ROUNDS, with_pins
from harness.trials.profile import Ask, Profile, load_profile
from harness.trials.questions import answered, asked
from harness.trials.steps import InferenceStep, LoadStep, PinStep

GIB = 1 << 30


def load(name: str, model: str = "m", outcome: Outcome = Outcome.PASSED, **more: Any) -> Trial:
    base: dict[str, Any] = {"id": name, "kind": "load", "model": model, "started_ns": 0, "ended_ns": 1}
    return Trial.model_validate({**base, "outcome": outcome, "answer": f"{name}'s answer", **more})


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
    (found,) = answered(Profile(trials=[step], questions=[question]), trials, sent or [])
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


def test_model_fits_where_it_came_up_and_partly_where_a_backend_swaps() -> None:
    up = load("01", metrics={"load_s": 9.0}, details={"wanted_nodes": 3, "nodes": ["a", "b", "c"]})
    fits = Ask(ask="fits", model="m", nodes=3)
    assert ask(fits, [up]).answer == "it came up over a, b, c, no backend in swap"
    assert ask(fits, [up]).verdict == "yes"
    swaps = up.model_copy(update={"peak": {"a": {"rpc_swap_bytes": GIB}}})
    assert ask(fits, [swaps]).verdict == "partly"
    assert "up to 1,024 MiB of a backend in swap" in ask(fits, [swaps]).answer
    assert ask(Ask(ask="fits", model="m", nodes=4), [up]).verdict == "unknown", "three are not four"
    starved = swaps.model_copy(update={"details": {**up.details, "starved": {"node": "a"}}})
    assert ask(fits, [up, starved]).verdict == "yes", "a node that was starved on purpose says nothing of it"


def test_model_that_is_refused_for_memory_does_not_fit_and_one_that_was_not_tried_is_unknown() -> None:
    refused = load("01", outcome=Outcome.SKIPPED, details={"wanted_nodes": 3, "refused": "does_not_fit"})
    assert ask(Ask(ask="fits", model="m", nodes=3), [refused]).verdict == "no"
    few = load("01", outcome=Outcome.SKIPPED, details={"wanted_nodes": 3})
    assert ask(Ask(ask="fits", model="m", nodes=3), [few]).verdict == "unknown"


def test_every_cold_and_warm_load_is_named() -> None:
    trials = [
        load("01", metrics={"load_s": 30.0}, details={"cache": "cold"}),
        load("02", metrics={"load_s": 32.0}, details={"cache": "cold"}),
        load("03", metrics={"load_s": 8.0}, details={"cache": "warm"}),
    ]
    found = ask(Ask(ask="loads", model="m"), trials)
    assert found.answer == "cold in 31.0 s (each: 30.0, 32.0), warm in 8.0 s; no backend in swap"
    assert found.figures == {"load_s_cold": 31.0, "load_s_warm": 8.0, "swap_bytes": 0.0}


def test_backend_that_was_started_anew_did_not_stay_up_and_the_trial_says_why() -> None:
    calm = load("01")
    assert ask(Ask(ask="stays_up"), [calm]).verdict == "yes"
    lost = load(
        "02",
        outcome=Outcome.FAILED,
        details={"backend_restarts": {"node3": 2}},
        diagnosis=Diagnosis(
            failure_class=FailureClass.OOM_KILLED, evidence=[], confidence=Confidence.CERTAIN, advice=""
        ),
    )
    found = ask(Ask(ask="stays_up"), [calm, lost])
    assert (found.verdict, found.answer) == ("no", "node3 was started anew 2x in 02 (oom_killed)")
    assert found.trials == ["02"]


def pinned(number: int, build: int, load_s: float) -> list[Trial]:
    state = CoordinatorState(phase=CoordinatorPhase.READY, report=LoadReport(build=build))
    up = load(f"{number}-load", coordinator=state, metrics={"load_s": load_s}, details={"cache": "cold"})
    return [up, load(f"{number}-inference", kind="inference")]


def test_pins_differ_only_beyond_the_noise() -> None:
    rounds = [
        pinned(n, build, load_s)
        for n, (build, load_s) in enumerate(zip([6751, 6792] * 3, range(10, 16), strict=True))
    ]
    trials = [trial for pair in rounds for trial in pair]
    same = [r for n in range(6) for r in requests(f"{n}-inference", [5.0, 5.1, 4.9])]
    found = ask(Ask(ask="pins", model="m"), trials, same)
    assert found.verdict == "no"
    assert "tokens/s of 6792 is 1.00x that of 6751 (" in found.answer
    assert "within the noise" in found.answer
    slower = [
        r for n in range(6) for r in requests(f"{n}-inference", [[5.0, 5.1, 4.9], [3.0, 3.1, 2.9]][n % 2])
    ]
    assert ask(Ask(ask="pins", model="m"), trials, slower).verdict == "yes"
    one = ask(Ask(ask="pins", model="m"), pinned(1, 6751, 3.0))
    assert (one.verdict, "--pins" in one.answer) == ("unknown", True)


def test_pins_are_tried_in_turns_and_the_first_comes_back() -> None:
    profile = Profile(trials=[LoadStep(kind="load", model="m")])
    trials = with_pins(profile, [6751, 6792], "m").trials
    assert [step.build for step in trials if isinstance(step, PinStep)] == [6751, 6792] * ROUNDS + [6751]
    assert [step.kind for step in trials[1:5]] == ["pin", "load", "inference", "unload"]


def test_profile_without_questions_is_asked_what_its_trials_can_tell() -> None:
    steps = [
        LoadStep(kind="load", model="m"),
        InferenceStep(kind="inference", model="m", prompt_tokens=35, generated_tokens=1),
    ]
    found = [(one.ask, one.model) for one in asked(Profile(trials=steps))]
    assert found == [("answers", "m"), ("loads", "m"), ("stays_up", None)]


def test_founding_asks_all_open_questions_of_whatever_models_are_named() -> None:
    profile = load_profile("founding", {"70b": "llama3.1:70b"})[2]
    assert profile.model_names == ["13b-q4_0", "llama3.1:70b"]
    assert {one.ask for one in profile.questions} == {"answers", "fits", "loads", "stays_up", "pins"}
    assert {one.nodes for one in profile.questions if one.ask == "fits"} == {3, 4}
    assert {one.model for one in profile.questions if one.model} == set(profile.model_names)
    with pytest.raises(HarnessError, match=r"no name '7b' for a model; it has: 13b, 70b"):
        load_profile("founding", {"7b": "x"})
