"""Medians, intervals, differences and drift, against known answers and laws that hold for any values."""

from math import inf

import numpy as np
import pytest
from harness.runs.statistics import FEW, difference, drift, spread
from hypothesis import given
from hypothesis import strategies as st

VALUES = st.lists(st.floats(0.001, 1e9), min_size=3, max_size=30)


def test_of_no_values_nothing_is_said_and_of_two_no_interval_is_given() -> None:
    assert spread([]) is None
    two = spread([1.0, 3.0])
    assert two is not None
    assert (two.median, two.low, two.high, two.n, two.few) == (2.0, None, None, 2, True)


def test_interval_of_a_known_sample_is_close_to_the_binomial_one() -> None:
    # Of 101 values 1..101 the 95% interval of the median by order statistics is 41..61.
    known = spread([float(value) for value in range(1, 102)])
    assert known is not None
    assert known.median == 51
    assert known.low == pytest.approx(41, abs=2)
    assert known.high == pytest.approx(61, abs=2)
    assert known.n > FEW
    assert not known.few


def test_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    samples = [spread(list(rng.lognormal(0, 0.5, 15))) for _ in range(300)]
    covered = [found.low <= 1 <= found.high for found in samples if found and found.low and found.high]
    assert 0.88 < sum(covered) / 300 < 0.99


@given(VALUES)
def test_interval_holds_the_median_and_lies_within_the_values(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert found == spread(values), "the same values give the same interval"


@given(VALUES)
def test_group_does_not_differ_from_itself(values: list[float]) -> None:
    found = difference(values, values)
    assert found is not None
    assert found.ratio == 1
    assert not found.beyond_noise


def test_clear_difference_is_beyond_the_noise_and_a_small_one_is_not() -> None:
    slow = difference([10.0, 10.2, 9.9, 10.1, 10.0], [11.5, 11.6, 11.4, 11.5, 11.7])
    assert slow is not None
    assert slow.ratio == pytest.approx(1.15)
    assert slow.beyond_noise
    same = difference([10.0, 12.0, 9.0, 11.0, 10.0], [10.5, 9.5, 11.5, 12.5, 10.0])
    assert same is not None
    assert not same.beyond_noise


@pytest.mark.parametrize(("before", "after"), [([], [1.0]), ([1.0], [])])
def test_group_without_values_is_not_compared(before: list[float], after: list[float]) -> None:
    assert difference(before, after) is None


@pytest.mark.parametrize(
    ("before", "after", "ratio", "ends", "beyond"),
    [
        ([0.0] * 3, [1.0, 2.0, 3.0], inf, (inf, inf), True),
        ([0.0] * 3, [0.0] * 3, 1, (1, 1), False),
        ([0.0] * 3, [0.0, 0.0, 9.0], 1, (1, inf), False),
        ([2.0, 2.0, 2.0], [0.0] * 3, 0, (0, 0), True),
        ([0.0, 2.0, 2.0], [4.0] * 3, 2, (2, inf), True),
        ([0.0], [4.0], inf, (None, None), False),
    ],
    ids=[
        "something of nothing",
        "nothing twice",
        "mostly nothing",
        "nothing left",
        "now and then",
        "too few",
    ],
)
def test_difference_from_nothing_is_told(
    before: list[float], after: list[float], ratio: float, ends: tuple[float, float], beyond: bool
) -> None:
    found = difference(before, after)
    assert found is not None
    assert (found.ratio, (found.low, found.high), found.beyond_noise) == (ratio, ends, beyond)


@given(st.lists(st.sampled_from([0.0, 1.0, 1e9]), min_size=3, max_size=9), VALUES)
def test_interval_of_a_ratio_holds_the_ratio_even_where_zeros_are(
    before: list[float], after: list[float]
) -> None:
    found = difference(before, after)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.ratio <= found.high


def test_equal_groups_are_called_different_no_more_often_than_the_docs_say() -> None:
    """One in nine of three values a side, at most one in twenty from five on: docs/trials.md says so."""
    rng = np.random.default_rng(7)

    def share(count: int) -> float:
        groups = rng.normal(1, 0.05, (400, 2, count))
        pairs = [difference(list(before), list(after)) for before, after in groups]
        return sum(found.beyond_noise for found in pairs if found) / len(pairs)

    assert 0.06 < share(3) < 0.16
    assert share(5) < 0.06


def test_too_few_values_are_never_beyond_the_noise() -> None:
    found = difference([1.0, 1.0], [9.0, 9.0, 9.0])
    assert found is not None
    assert (found.ratio, found.low, found.beyond_noise) == (9.0, None, False)


def test_drift_is_found_behind_outliers_and_noise() -> None:
    rng = np.random.default_rng(2)
    times = [float(second) for second in range(1000)]
    values = [100 + 0.5 * t + float(rng.normal(0, 5)) for t in times]
    values[100] = values[500] = 1e6
    found = drift(times, values)
    assert found is not None
    assert found.per_s == pytest.approx(0.5, rel=0.02)
    assert found.beyond_noise
    level = drift(times, [float(rng.normal(0, 5)) for _ in times])
    assert level is not None
    assert level.low < 0 < level.high
    assert not level.beyond_noise


def test_drift_of_few_points_or_of_one_moment_is_none() -> None:
    assert drift([0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]) is None
    assert drift([0.0, 1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0]) is not None
    assert drift([5.0] * 6, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) is None


def test_noise_that_lasts_is_seldom_called_a_drift() -> None:
    """One second's memory is nearly the last one's; Sen's interval takes its points to be independent."""
    rng = np.random.default_rng(3)
    called = 0
    for _ in range(200):
        noise = rng.normal(size=600)
        walk = np.zeros(600)
        for place in range(1, 600):
            walk[place] = 0.9 * walk[place - 1] + noise[place]
        found = drift([float(s) for s in range(400)], list(walk[200:]))
        called += found is not None and found.beyond_noise
    assert called < 30, "points taken one by one: two in three"
