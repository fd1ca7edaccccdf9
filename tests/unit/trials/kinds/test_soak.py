"""Soak: what is wrong, what drifts, and what is kept when the router is gone."""

from pathlib import Path
from typing import Any

import pytest
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.run_records import Request
from harness.errors import HarnessError
from harness.trials.kinds import soak
from harness.trials.profile.steps import SoakStep
from tests.unit.trials.cluster_double import RouterDouble, make_context


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
    said = soak._answer({"requests": 2.0}, {"rate_drift": None, "memory_drift": {}}, monitored=False)
    assert "no monitor reported" in said
    assert "too few answers to tell" in said
    assert "no samples to tell" in said
    assert "neither" not in said


async def test_soak_keeps_what_it_measured_when_the_router_is_gone(tmp_path: Path) -> None:
    router = RouterDouble(history=HarnessError("router cannot be reached"))
    ctx = make_context(tmp_path, router=router)
    assert await soak._later_starts(ctx, "ours") == ([], None, "router cannot be reached")
    router.history = [UP.model_copy(update={"start_id": name}) for name in ("before", "ours", "again")]
    later, up, why = await soak._later_starts(ctx, "ours")
    assert ([state.start_id for state in later], up and up.start_id, why) == (["again"], "again", None)
    later, up, why = await soak._later_starts(ctx, "again")
    assert (later, up and up.start_id, why) == ([], "again", None)
