"""The order of a run's trials."""

from pathlib import Path

import pytest
from harness.trials.profile.profile import Profile, arrange, blocks, load_profile, parse_profile, shuffle_seed
from harness.trials.profile.steps import LoadStep, Step

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
    assert [named(block) for block in cut] == [
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


def test_loads_that_need_splits_of_two_blocks_join_them() -> None:
    mine = profile(
        "trials: [{kind: load, model: a}, {kind: load, model: b}, {kind: load, model: c}, "
        "{kind: load, model: a, cache: warm}, {kind: load, model: b, cache: warm}, {kind: load, model: d}]"
    )
    cut = [[step.model for step in block] for block in blocks(mine.trials)]
    assert cut == [["a", "b", "c", "a", "b"], ["d"]]


def test_seed_is_the_given_one_else_a_new_one_where_the_profile_is_shuffled() -> None:
    given = profile("trials: [{kind: pool, model: m}]")
    shuffled = given.model_copy(update={"order": "shuffled"})
    assert shuffle_seed(given, None) is None
    assert [shuffle_seed(p, 9) for p in (given, shuffled)] == [9, 9]
    assert shuffle_seed(shuffled, None) is not None
