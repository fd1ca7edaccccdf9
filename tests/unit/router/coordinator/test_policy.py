"""Whose turn it is at the coordinator."""

import pytest
from harness.router.coordinator.policy import Grant, Load, Situation, Wait, next_step


@pytest.mark.parametrize(
    ("situation", "step"),
    [
        (Situation([], None), Wait()),
        (Situation([], "a"), Wait()),
        (Situation(["a", "b"], None), Load("a")),
        (Situation(["a", "a"], "a"), Grant(0)),
        (Situation(["a"], "a", in_flight=2, capacity=2), Wait()),
        (Situation(["a"], "a", in_flight=1, capacity=2), Grant(0)),
        # The oldest waits for another model: the one that is served keeps its turn while it is asked for ...
        (Situation(["b", "a"], "a", served_s=1, turn_s=10), Grant(1)),
        (Situation(["b", "a"], "a", in_flight=1, served_s=1, turn_s=10), Wait(9)),
        (Situation(["b"], "a", in_flight=1, served_s=1, turn_s=10), Wait(9)),
        # ... and gives it up once nobody asks for it, or the turn is over.
        (Situation(["b"], "a", served_s=1, turn_s=10), Load("b")),
        (Situation(["b", "a"], "a", served_s=10, turn_s=10), Load("b")),
        (Situation(["b", "a"], "a", in_flight=1, served_s=11, turn_s=10), Load("b")),
        # A turn has no end while the oldest request is for the model that is served.
        (Situation(["a", "b"], "a", served_s=100, turn_s=10), Grant(0)),
    ],
)
def test_next_step(situation: Situation, step: Grant | Load | Wait) -> None:
    assert next_step(situation) == step


def test_steady_requests_for_one_model_do_not_starve_another() -> None:
    """One second a step: a new request for ``a`` comes with each, one for ``b`` came first of all."""
    waiting, served_s = ["b"], 0.0
    while True:
        waiting.append("a")
        step = next_step(Situation(waiting, "a", served_s=served_s, turn_s=30))
        if isinstance(step, Load):
            break
        assert isinstance(step, Grant)
        waiting.pop(step.index)
        served_s += 1
    assert (step.model, served_s) == ("b", 30)
