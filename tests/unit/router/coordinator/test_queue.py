"""The queue before the coordinator, the budget of its restarts, and the folders it leaves."""

import asyncio
from pathlib import Path

import pytest
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.router.coordinator.log_retention import StartFolder, prune, surplus
from harness.router.coordinator.queue import RequestQueue, expected_wait_s, retry_seconds
from harness.router.coordinator.restarts import Failure, RestartBudget, pause_s
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


def test_full_queue_refuses_with_the_time_after_which_a_place_is_free() -> None:
    async def fill() -> tuple[RequestQueue, RouterError]:
        queue = RequestQueue(2)
        queue.loaded("big", 99.5)
        queue.answered(3)
        queue.enter("big", None)
        queue.enter("big", None)
        with pytest.raises(RouterError) as caught:
            queue.enter("big", None)
        return queue, caught.value

    queue, error = asyncio.run(fill())
    assert (error.status, error.error_class) == (503, "queue_full")
    assert error.headers == {"retry-after": "103"}, "the load of big, and the answer of the oldest request"
    assert [(entry.position, entry.model) for entry in queue.view()] == [(1, "big"), (2, "big")]


def test_places_move_up_when_somebody_leaves() -> None:
    async def leave() -> list[tuple[int, str]]:
        queue = RequestQueue(9)
        first = queue.enter("a", None)
        assert queue.enter("b", None).position == 2
        queue.leave(first)
        return [(entry.position, entry.model) for entry in queue.view()]

    assert asyncio.run(leave()) == [(1, "b")]


def test_failure_reaches_everybody_who_waits_for_the_model_and_nobody_else() -> None:
    async def fail() -> tuple[list[bool], list[str]]:
        queue = RequestQueue(9)
        tickets = [queue.enter(model, None) for model in ("a", "b", "a")]
        queue.fail(RouterError(502, "backend_lost", "gone"), "a")
        return [ticket.granted.done() for ticket in tickets], queue.models

    assert asyncio.run(fail()) == ([True, False, True], ["b"])


def test_wait_counts_answers_and_every_change_of_model() -> None:
    load_s = {"a": 100.0, "b": 10.0}
    assert expected_wait_s(["a", "a", "b", "a"], "a", answer_s=2, load_s=load_s) == 4 * 2 + 10 + 100
    assert [retry_seconds(s) for s in (0, 1.2, 1e9)] == [1, 2, 3600]


def test_pauses_grow_to_a_limit_and_the_first_restart_has_none() -> None:
    assert [pause_s(n) for n in range(9)] == [0, 0, 1, 2, 4, 8, 16, 30, 30]


def test_spent_budget_refuses_with_the_diagnosis_until_the_window_has_passed() -> None:
    budget = RestartBudget(3, window_s=60)
    for second in (10, 20, 30):
        budget.check(second * S)
        budget.failed(failure(second))
    with pytest.raises(RouterError) as caught:
        budget.check(40 * S)
    assert (caught.value.status, caught.value.error_class) == (503, "restart_budget_spent")
    assert caught.value.retry_after_s == 30, "the failure of second 10 no longer counts at second 70"
    assert caught.value.diagnosis == failure(30).diagnosis
    assert "backend_lost: look at node2" in caught.value.message
    budget.check(70 * S)


def test_load_that_somebody_asks_for_forgives_what_was() -> None:
    budget = RestartBudget(1, window_s=60)
    budget.failed(failure(10))
    budget.forgive(11 * S)
    budget.check(12 * S)
    assert budget.in_a_row == 0
    assert len(budget.history) == 1


def test_folders_beyond_the_number_or_the_bytes_are_surplus_oldest_first() -> None:
    folders = [StartFolder(Path(str(n)), 10) for n in range(5)]
    assert surplus(folders, keep=9, keep_bytes=1000) == []
    assert surplus(folders, keep=2, keep_bytes=1000) == folders[:3]
    assert surplus(folders, keep=9, keep_bytes=25) == folders[:3]
    assert surplus(folders, keep=1, keep_bytes=1) == folders[:4], "the newest one stays"
    assert surplus([], keep=1, keep_bytes=1) == []


def test_pruning_leaves_alone_what_is_no_start(tmp_path: Path) -> None:
    names = [f"20260101T00000{n}.000000Z-m" for n in range(3)]
    for name in [*names, "notes"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "server.log").write_text("x")
    prune(tmp_path, keep=1, keep_bytes=10**6)
    assert sorted(path.name for path in tmp_path.iterdir()) == [names[2], "notes"]
    prune(tmp_path / "absent", keep=1, keep_bytes=1)
