"""Decisions of the parity and soak trials, and requests in flight together."""

import asyncio

import pytest
from harness.runs.schema import Request
from harness.trials.parity import compare
from harness.trials.requests import in_flight


def answer(ids: list[int], logprobs: list[float] | None = None) -> Request:
    return Request(
        trial="t",
        index=0,
        route="coordinator",
        model="m",
        sent_ns=0,
        token_ids=ids,
        logprobs=[-1.0] * len(ids) if logprobs is None else logprobs,
    )


@pytest.mark.parametrize(
    ("seen", "equal", "compared"),
    [([5, 6, 7], 3, 3), ([5, 9, 7], 1, 3), ([5, 6], 2, 3), ([5, 6, 7, 8], 3, 4), ([], 0, 3)],
)
def test_parity_ends_at_the_first_token_that_differs(seen: list[int], equal: int, compared: int) -> None:
    found = compare(answer([5, 6, 7]), answer(seen))
    assert (found.equal, found.compared, found.same) == (equal, compared, equal == compared)


def test_gap_of_probabilities_is_that_of_the_equal_tokens() -> None:
    found = compare(answer([1, 2, 3], [-1.0, -2.0, -9.0]), answer([1, 2, 4], [-1.0, -2.25, -1.0]))
    assert found.largest_logprob_gap == 0.25
    assert compare(answer([1]), answer([2])).largest_logprob_gap is None


async def test_so_many_are_in_flight_and_no_more() -> None:
    now, most, asked = 0, 0, []

    async def ask(index: int) -> bool:
        nonlocal now, most
        now += 1
        most = max(most, now)
        asked.append(index)
        await asyncio.sleep(0)
        now -= 1
        return True

    await in_flight(3, range(10), ask)
    assert (most, sorted(asked)) == (3, list(range(10)))


async def test_none_is_begun_after_one_that_says_so() -> None:
    asked: list[int] = []

    async def ask(index: int) -> bool:
        asked.append(index)
        return index < 4

    await in_flight(1, range(10), ask)
    assert asked == [0, 1, 2, 3, 4]
