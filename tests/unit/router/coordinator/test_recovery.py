"""The budget of a coordinator's restarts."""

import pytest
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.router.coordinator.recovery import Failure, RestartBudget, pause_s
from harness.router.errors import RouterError

S = 10**9


def failure(second: float) -> Failure:
    diagnosis = Diagnosis(
        failure_class=FailureClass.BACKEND_LOST,
        evidence=[Evidence(source="router", line=f"at {second}")],
        confidence=Confidence.CERTAIN,
        advice="look at node2",
    )
    return Failure(
        time_ns=int(second * S), model="m", failure_class="backend_lost", message="", diagnosis=diagnosis
    )


def test_pauses_grow_to_a_limit_and_the_first_restart_has_none() -> None:
    assert [pause_s(n) for n in range(9)] == [0, 0, 1, 2, 4, 8, 16, 30, 30]


def test_spent_budget_refuses_with_the_diagnosis_until_the_window_has_passed() -> None:
    budget = RestartBudget(3, window_s=60)
    for second in (10, 20, 30):
        budget.check(second * S)
        budget.record_failure(failure(second))
    with pytest.raises(RouterError) as caught:
        budget.check(40 * S)
    assert (caught.value.status, caught.value.error_class) == (503, "restart_budget_spent")
    assert caught.value.retry_after_s == 30, "the failure of second 10 no longer counts at second 70"
    assert caught.value.diagnosis == failure(30).diagnosis
    assert "backend_lost: look at node2" in caught.value.message
    budget.check(70 * S)


def test_load_that_somebody_asks_for_forgives_what_was() -> None:
    budget = RestartBudget(1, window_s=60)
    budget.record_failure(failure(10))
    budget.reset(11 * S)
    budget.check(12 * S)
    assert budget.in_a_row == 0
    assert len(budget.history) == 1
