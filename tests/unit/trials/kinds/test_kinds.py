"""Decisions of the parity and soak trials, and requests in flight together."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.run_records import Request
from harness.errors import HarnessError
from harness.trials.kinds import soak
from harness.trials.kinds.parity import compare
from harness.trials.load_generator.requests import in_flight
from harness.trials.profile.steps import SoakStep


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


def test_text_tells_of_the_tokens_that_have_no_id() -> None:
    """llama-server gives none for a token that ends inside a character."""
    one, other = answer([1, 2]), answer([1, 2]).model_copy(update={"text": "\u65e5"})
    assert compare(one, one).same
    assert not compare(one, other).same


SOAK = SoakStep(kind="soak", model="m", requests=2, prompt_tokens=3, generated_tokens=2)
UP = CoordinatorState(phase=CoordinatorPhase.READY)


def soaked(**more: Any) -> Request:
    told: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": 2, "token_ns": [1, 2]}
    return answer([]).model_copy(update={**told, **more})


def test_soak_of_whole_answers_of_one_coordinator_is_well() -> None:
    assert soak._wrong(SOAK, [soaked(), soaked()], 0, {}, UP) is None


@pytest.mark.parametrize(
    ("sent", "up", "says"),
    [
        ([soaked(route="pool")], UP, "answered by the pool"),
        ([soaked(completion_tokens=1), soaked()], UP, "1 tokens generated, 2 asked"),
        ([soaked(warmup=True)], UP, "no prompt of exactly 3 tokens"),
        ([], UP, "no prompt of exactly 3 tokens"),
        ([soaked(), soaked(error="gone")], UP, "1 of 2 requests failed, the first with: gone"),
        ([soaked(), soaked(warmup=True)], UP, "no prompt of exactly 3 tokens"),
        ([soaked()], CoordinatorState(phase=CoordinatorPhase.ENDED), "not up any more"),
        ([soaked()], None, "not up any more"),
    ],
)
def test_soak_says_what_is_wrong(sent: list[Request], up: CoordinatorState | None, says: str) -> None:
    assert says in str(soak._wrong(SOAK, sent, 0, {}, up))


def test_soak_whose_requests_all_failed_says_that_alone() -> None:
    assert soak._wrong(SOAK, [soaked(error="refused")], 0, {}, UP) == (
        "1 of 1 requests failed, the first with: refused"
    )


def test_soak_claims_nothing_that_nobody_saw() -> None:
    said = soak._answer({"requests": 2.0}, {"rate_drift": None, "memory_drift": {}}, known=False)
    assert "no monitor told" in said
    assert "too few answers to tell" in said
    assert "no samples to tell" in said
    assert "neither" not in said


async def test_soak_keeps_what_it_measured_when_the_router_is_gone() -> None:
    async def gone() -> None:
        raise HarnessError("router cannot be reached")

    async def starts() -> list[CoordinatorState]:
        return [UP.model_copy(update={"start_id": name}) for name in ("before", "ours", "again")]

    async def start(start_id: str) -> CoordinatorState:
        return UP.model_copy(update={"start_id": start_id})

    ctx: Any = SimpleNamespace(router=SimpleNamespace(starts=gone))
    assert await soak._after(ctx, "ours") == ([], None, "router cannot be reached")
    ctx.router = SimpleNamespace(starts=starts, start=start)
    later, up, why = await soak._after(ctx, "ours")
    assert ([state.start_id for state in later], up and up.start_id, why) == (["again"], "again", None)
    later, up, why = await soak._after(ctx, "again")
    assert (later, up and up.start_id, why) == ([], "again", None)
