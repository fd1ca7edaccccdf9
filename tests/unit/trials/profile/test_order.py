"""The order of a run's trials, and what ends it early."""

import asyncio
from pathlib import Path

import pytest
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.contracts.run_records import Outcome, Trial
from harness.trials.context import Finding
from harness.trials.profile.order import arrange, blocks, shuffle_seed
from harness.trials.profile.profile import Profile, StopWhen, load_profile, parse_profile
from harness.trials.profile.steps import LoadStep, Step
from harness.trials.stop_conditions import RunDeadline, why_stop

TWO_MODELS = """
repeats: {repeats}
trials:
  - {{kind: pool, model: small}}
  - {{kind: load, model: a, cache: cold}}
  - {{kind: inference, model: a, prompt_tokens: 9, generated_tokens: 9}}
  - {{kind: load, model: a, cache: warm}}
  - {{kind: unload, model: a}}
  - {{kind: load, model: b, cache: cold}}
  - {{kind: pool, model: small}}
  - {{kind: inference, model: b, prompt_tokens: 9, generated_tokens: 9}}
"""


def profile(text: str) -> Profile:
    return parse_profile(Path("mine.yml"), text)


def named(steps: list[Step]) -> list[str]:
    return [f"{step.kind} {step.model}" for step in steps]


def test_what_builds_on_a_load_stays_in_its_block() -> None:
    cut = blocks(profile(TWO_MODELS.format(repeats=1)).trials)
    assert [named(list(block.steps)) for block in cut] == [
        ["pool small"],
        ["load a", "inference a", "load a", "unload a"],
        ["load b", "pool small", "inference b"],
    ]


def test_without_a_seed_the_profiles_order_is_kept_round_by_round() -> None:
    mine = profile(TWO_MODELS.format(repeats=2))
    assert arrange(mine, None) == [*mine.trials, *mine.trials]


def test_seed_gives_its_order_again_and_another_seed_another() -> None:
    mine = profile(TWO_MODELS.format(repeats=5))
    assert arrange(mine, 7) == arrange(mine, 7)
    assert len({tuple(named(arrange(mine, seed))) for seed in range(20)}) > 1


@pytest.mark.parametrize("seed", range(20))
def test_every_round_holds_every_trial_once(seed: int) -> None:
    mine = profile(TWO_MODELS.format(repeats=3))
    order, size = named(arrange(mine, seed)), len(mine.trials)
    rounds = [order[start : start + size] for start in range(0, len(order), size)]
    assert all(sorted(turn) == sorted(named(mine.trials)) for turn in rounds)


@pytest.mark.parametrize("seed", range(50))
def test_load_that_repeats_a_split_comes_after_the_one_that_made_it(seed: int) -> None:
    """The starved 70B of ``full`` keeps the split made while its node had its memory."""
    loads = [s for s in arrange(load_profile("full")[2], seed) if isinstance(s, LoadStep)]
    whole = [s.model == "70b-tq1_0" and s.nodes == 4 and s.starve is None for s in loads]
    starved = [s.starve is not None for s in loads]
    assert whole.index(True) < starved.index(True)


def test_need_that_nothing_meets_is_left_to_the_trial_to_say() -> None:
    mine = profile("trials: [{kind: load, model: a, cache: warm}, {kind: load, model: a}]")
    assert sorted(s.cache for s in arrange(mine, 3) if isinstance(s, LoadStep)) == ["cold", "warm"]


def test_seed_is_the_one_typed_then_the_profiles_then_a_new_one() -> None:
    given = profile("trials: [{kind: pool, model: m}]")
    shuffled = given.model_copy(update={"order": "shuffled"})
    seeded = shuffled.model_copy(update={"seed": 5})
    assert shuffle_seed(given, None) is None
    assert [shuffle_seed(p, 9) for p in (given, shuffled, seeded)] == [9, 9, 9]
    assert shuffle_seed(seeded, None) == 5
    assert shuffle_seed(shuffled, None) is not None


def trial(number: int, outcome: Outcome, failure: FailureClass | None = None) -> Trial:
    found = failure and Diagnosis(
        failure_class=failure,
        evidence=[Evidence(source="log", line="x")],
        confidence=Confidence.CERTAIN,
        advice="",
    )
    return Trial(
        id=f"{number:02d}",
        kind="load",
        model="m",
        started_ns=0,
        ended_ns=1,
        outcome=outcome,
        answer="",
        diagnosis=found,
    )


def test_run_stops_after_as_many_failures_as_the_profile_admits() -> None:
    seen = [trial(1, Outcome.FAILED), trial(2, Outcome.PASSED), trial(3, Outcome.FAILED)]
    assert why_stop(StopWhen(failed=2), seen[:2]) is None
    assert why_stop(StopWhen(failed=2), seen) == "2 of 3 trials failed"
    assert why_stop(StopWhen(), seen) is None


def test_run_stops_after_a_failure_of_a_named_class_but_not_an_expected_one() -> None:
    when = StopWhen(classes=[FailureClass.SWAP_THRASH])
    assert why_stop(when, [trial(1, Outcome.PASSED, FailureClass.SWAP_THRASH)]) is None
    assert why_stop(when, [trial(1, Outcome.FAILED, FailureClass.OOM_KILLED)]) is None
    assert (
        why_stop(when, [trial(1, Outcome.FAILED, FailureClass.SWAP_THRASH)])
        == "trial 01 ended in swap_thrash"
    )


async def test_trial_that_outlasts_the_run_is_ended_and_says_so() -> None:
    async def endless() -> Finding:
        await asyncio.Event().wait()
        raise AssertionError("nothing sets it")

    deadline = RunDeadline(0.01)
    found = await deadline.hold(endless())
    assert (found.outcome, found.answer) == (
        Outcome.FAILED,
        "ended unfinished: the run's deadline of 0.01 s has passed",
    )
    assert deadline.over


async def test_time_out_inside_a_trial_is_not_the_runs_deadline() -> None:
    async def timed_out() -> Finding:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await RunDeadline(None).hold(timed_out())
    assert not RunDeadline(None).over
    assert not RunDeadline(60, spent_s=50).over
    assert RunDeadline(60, spent_s=60).over
