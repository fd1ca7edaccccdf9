"""What the scheduler decides after each event; there is no clock and no task in it."""

import pytest
from harness.router.coordinator.scheduler import (
    Action,
    GrantRequest,
    LoadModel,
    Scheduler,
    Slot,
    WakeUp,
    expected_wait_s,
    retry_seconds,
)
from harness.router.errors import RouterError

READY = Slot(serving="a", capacity=2, turn_s=10)


def scheduler(*models: str, limit: int = 9) -> Scheduler:
    made = Scheduler(limit)
    for second, model in enumerate(models):
        made.enqueue(model, None, second)
    return made


def names(actions: list[Action]) -> list[str]:
    shown = []
    for action in actions:
        match action:
            case GrantRequest(ticket):
                shown.append(f"grant {ticket.model}{ticket.position}")
            case LoadModel(model):
                shown.append(f"load {model}")
            case WakeUp(seconds):
                shown.append(f"wake {seconds:g}")
    return shown


@pytest.mark.parametrize(
    ("models", "slot", "expected"),
    [
        ([], Slot(), []),
        ([], READY, []),
        (["a", "b"], Slot(), ["load a"]),
        (["a", "a", "a"], READY, ["grant a1", "grant a2"]),
        (["a"], Slot(serving="a", in_flight=2, capacity=2), []),
        (["a"], Slot(serving="a", in_flight=1, capacity=2), ["grant a1"]),
        # The oldest waits for another model: the one that is served keeps its turn while it has requests ...
        (["b", "a"], READY, ["grant a2", "wake 10"]),
        (["b", "a"], Slot(serving="a", in_flight=1, served_s=1, turn_s=10), ["wake 9"]),
        (["b"], Slot(serving="a", in_flight=1, capacity=2, served_s=4, turn_s=10), ["wake 6"]),
        # ... and gives it up once there are none, or the turn is over.
        (["b"], READY, ["load b"]),
        (["b", "a"], Slot(serving="a", served_s=10, turn_s=10), ["load b"]),
        (["b", "a"], Slot(serving="a", in_flight=1, served_s=11, turn_s=10), ["load b"]),
        # A turn has no end while the oldest request is for the model that is served.
        (["a", "b"], Slot(serving="a", served_s=100, turn_s=10), ["grant a1", "load b"]),
        (["a"], Slot(ending=True), []),
        (["a"], Slot(serving="a", ending=True), []),
    ],
)
def test_actions_follow_from_queue_and_slot(models: list[str], slot: Slot, expected: list[str]) -> None:
    assert names(scheduler(*models).next_actions(slot, 0)) == expected


def test_steady_requests_for_one_model_do_not_starve_another() -> None:
    """One second a step: a new request for ``a`` comes with each, one for ``b`` came first of all."""
    queue, actions, served_s = scheduler("b"), [], 0
    while "load b" not in actions:
        queue.enqueue("a", "a", served_s)
        actions = names(queue.next_actions(Slot(serving="a", served_s=served_s, turn_s=30), served_s))
        assert actions[0].startswith("load" if served_s == 30 else "grant a")
        served_s += 1
    assert served_s == 31


def test_granted_requests_have_left_the_queue() -> None:
    queue = scheduler("a", "a", "a")
    queue.next_actions(READY, 0)
    assert [entry.model for entry in queue.entries(0)] == ["a"]


def test_client_that_leaves_frees_its_place() -> None:
    queue = Scheduler(9)
    ticket = queue.enqueue("b", None, 0)
    queue.enqueue("a", None, 1)
    queue.leave(ticket)
    queue.leave(ticket)
    assert names(queue.next_actions(READY, 1)) == ["grant a2"]


def test_full_queue_refuses_with_the_time_after_which_there_is_room() -> None:
    queue = Scheduler(2)
    queue.record_load("big", 99.5)
    queue.record_answer(3)
    for second in (0, 1):
        queue.enqueue("big", None, second)
    with pytest.raises(
        RouterError, match="2 requests wait for the coordinator already, the oldest for 2 s"
    ) as caught:
        queue.enqueue("big", None, 2)
    assert (caught.value.status, caught.value.error_class) == (503, "queue_full")
    assert caught.value.headers == {"retry-after": "103"}, "the load, and the answer of the oldest request"
    entries = [(entry.position, entry.model, entry.age_s) for entry in queue.entries(2)]
    assert entries == [(1, "big", 2), (2, "big", 1)]


def test_positions_move_up_when_a_request_leaves() -> None:
    queue = Scheduler(9)
    first = queue.enqueue("a", None, 0)
    assert queue.enqueue("b", None, 0).position == 2
    queue.leave(first)
    assert [(entry.position, entry.model) for entry in queue.entries(0)] == [(1, "b")]


def test_wait_counts_answers_and_every_change_of_model() -> None:
    load_s = {"a": 100.0, "b": 10.0}
    assert expected_wait_s(["a", "a", "b", "a"], "a", answer_s=2, load_s=load_s) == 4 * 2 + 10 + 100
    assert [retry_seconds(s) for s in (0, 1.2, 1e9)] == [1, 2, 3600]


@pytest.mark.parametrize("slot", [Slot(), READY])
def test_hold_grants_and_loads_nothing_until_its_deadline(slot: Slot) -> None:
    queue = scheduler("a")
    queue.hold(until_s=30)
    assert names(queue.next_actions(slot, 10)) == ["wake 20"]
    assert queue.model_to_load(slot, 10) is None
    assert not queue.hold_expired(29)
    assert queue.hold_expired(30)
    assert names(queue.next_actions(slot, 30)) != ["wake 0"]


def test_second_hold_counts_from_its_own_begin() -> None:
    queue = Scheduler(9)
    queue.hold(until_s=30)
    queue.hold(until_s=50)
    assert queue.held_s(40) == 10


def test_resume_ends_a_hold_once() -> None:
    queue = scheduler("a")
    queue.hold(until_s=30)
    assert queue.resume()
    assert not queue.resume()
    assert names(queue.next_actions(Slot(), 1)) == ["load a"]


def test_lost_model_is_loaded_although_no_request_waits() -> None:
    queue = Scheduler(9)
    queue.wanted = "a"
    assert names(queue.next_actions(Slot(), 0)) == ["load a"]
    assert queue.model_to_load(Slot(), 0) == "a"


def test_request_goes_before_a_lost_model() -> None:
    queue = scheduler("b")
    queue.wanted = "a"
    assert names(queue.next_actions(Slot(), 0)) == ["load b"]


def test_lost_model_does_not_replace_another_one_that_serves() -> None:
    queue = Scheduler(9)
    queue.wanted = "a"
    assert names(queue.next_actions(Slot(serving="b"), 0)) == []


def test_load_that_became_needless_is_not_done() -> None:
    queue = scheduler("a")
    assert queue.model_to_load(Slot(), 0) == "a"
    assert queue.model_to_load(READY, 0) is None
    assert queue.model_to_load(Slot(ending=True), 0) is None


def test_refused_requests_are_those_of_the_model_alone() -> None:
    queue = scheduler("a", "b", "a")
    assert [ticket.position for ticket in queue.refuse("a")] == [1, 3]
    assert [ticket.model for ticket in queue.refuse()] == ["b"]
    assert queue.entries(0) == []
