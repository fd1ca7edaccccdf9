"""Requests that come while backends are changed wait, and are answered afterwards."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.router_stack import RouterStack, wait_for

pytestmark = pytest.mark.integration
ASK = {"model": "smollm2", "prompt": "One two", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def stack(
    llama_build: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RouterStack]:
    made = RouterStack(llama_build, smollm2, tmp_path_factory.mktemp("hold"))
    yield made
    made.close()


def ask_later(stack: RouterStack, answers: list[int]) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(stack.call("/v1/completions", ASK)[0]))
    thread.start()
    return thread


def test_requests_wait_while_held_and_are_answered_after(stack: RouterStack) -> None:
    assert stack.call("/v1/completions", ASK)[0] == 200
    status, state = stack.admin("hold", {"deadline_s": 60})
    assert (status, state["phase"], state["model"]) == (200, "ended", "smollm2")
    assert [sent["requests_in_flight"] for sent in state["signals"]] == [0]
    answers: list[int] = []
    waiting = [ask_later(stack, answers) for _ in range(8)]
    wait_for(lambda: len(stack.admin("queue")[1]["waiting"]) == 8, 20, "eight waiting requests")
    for backend in stack.backends:
        backend.kill()
        backend.start()
    assert stack.admin("load", {"model": "smollm2"})[0] == 200
    assert answers == []
    assert stack.admin("resume", {}) == (200, {"was_held": True})
    for thread in waiting:
        thread.join(60)
    assert answers == [200] * 8
    assert stack.admin("resume", {}) == (200, {"was_held": False})


def test_answer_in_flight_is_finished_before_the_coordinator_stops(stack: RouterStack) -> None:
    stack.admin("load", {"model": "smollm2"})
    connection, answer = stack.send(
        "/v1/completions", ASK | {"max_tokens": 60, "stream": True, "ignore_eos": True}
    )
    _, state = stack.admin("hold", {"deadline_s": 60})
    text = answer.read().decode()
    connection.close()
    stack.admin("resume", {})
    assert text.rstrip().endswith("data: [DONE]")
    assert [sent["requests_in_flight"] for sent in state["signals"]] == [0]
    assert state["diagnosis"]["class"] == "stopped"


def test_hold_ends_by_itself(stack: RouterStack) -> None:
    stack.admin("hold", {"deadline_s": 1})
    assert stack.call("/v1/completions", ASK)[0] == 200
