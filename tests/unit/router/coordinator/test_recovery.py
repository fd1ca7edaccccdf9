"""The budget of a coordinator's restarts."""

import asyncio
from pathlib import Path

import pytest
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.router.coordinator.recovery import RestartBudget, pause_s
from harness.router.errors import RouterError
from harness.router.failures import Failure
from tests.unit.router.coordinator.fakes import bench


def failure(second: float) -> Failure:
    diagnosis = Diagnosis(
        failure_class=FailureClass.BACKEND_LOST,
        evidence=[Evidence(source="router", line=f"at {second}")],
        confidence=Confidence.CERTAIN,
        advice="look at node2",
    )
    return Failure(model="m", failure_class="backend_lost", message="", diagnosis=diagnosis)


def test_pauses_grow_to_a_limit_and_the_first_restart_has_none() -> None:
    assert [pause_s(n) for n in range(9)] == [0, 0, 1, 2, 4, 8, 16, 30, 30]


def test_spent_budget_refuses_with_the_diagnosis_until_the_window_has_passed() -> None:
    budget = RestartBudget(3, window_s=60)
    for second in (10, 20, 30):
        budget.check(second)
        budget.record_failure(failure(second), second)
    with pytest.raises(RouterError) as caught:
        budget.check(40)
    assert (caught.value.status, caught.value.error_class) == (503, "restart_budget_spent")
    assert caught.value.retry_after_s == 30, "the failure of second 10 no longer counts at second 70"
    assert caught.value.diagnosis == failure(30).diagnosis
    assert "backend_lost: look at node2" in caught.value.message
    budget.check(70)


def test_load_that_somebody_asks_for_forgives_what_was() -> None:
    budget = RestartBudget(1, window_s=60)
    budget.record_failure(failure(10), 10)
    budget.reset()
    budget.check(12)
    assert budget.in_a_row == 0


async def test_clock_that_is_set_back_does_not_keep_a_budget_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = bench(tmp_path, restart_budget=1, restart_window_s=0.01)
    at.engine.dies_at_start = 1
    monkeypatch.setattr("time.time_ns", lambda: 10**18)
    with pytest.raises(RouterError, match="failed 1 times"):
        await at.ask()
    monkeypatch.setattr("time.time_ns", lambda: 10**18 - 3600 * 10**9)
    await asyncio.sleep(0.02)
    await at.ask()
    await at.manager.close()
