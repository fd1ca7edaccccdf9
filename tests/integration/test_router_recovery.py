"""No request lost to a crash: real coordinators and backends, killed, stopped and told to go."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.integration.router_stack import RouterStack, wait_for

pytestmark = pytest.mark.integration

QUESTION = [{"role": "user", "content": "Say hello."}]
BUDGET = 4
QUEUE = 100
Answer = tuple[int, Any, dict[str, str]]


@pytest.fixture(scope="module")
def shared(
    llama_build: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RouterStack]:
    stack = RouterStack(
        llama_build,
        smollm2,
        tmp_path_factory.mktemp("recovery"),
        suspect_s=1,
        stall_deadline_s=3,
        backend_wait_s=1,
        restart_budget=BUDGET,
        restart_window_s=60,
        queue_limit=QUEUE,
        turn_s=1,
        drain_s=20,
        debug_coordinator_recovery=True,
    )
    yield stack
    stack.close()


@pytest.fixture
def stack(shared: RouterStack) -> RouterStack:
    """Nothing loaded, both backends up, the budget of restarts whole."""
    for backend in shared.backends:
        backend.signal(signal.SIGCONT)
    shared.reset()
    assert shared.admin("load", {"model": "smollm2"})[0] == 200
    shared.reset()
    return shared


@pytest.fixture
def ask(stack: RouterStack) -> Iterator[Callable[..., Future[Answer]]]:
    """Sends requests side by side; each gives its answer once it is there."""
    with ThreadPoolExecutor(QUEUE + 1) as threads:

        def submit(tokens: int, *, model: str = "smollm2", path: str = "/v1/chat/completions") -> Any:
            body = {
                "model": model,
                "messages": QUESTION,
                "max_tokens": tokens,
                "ignore_eos": True,
                "stream": False,
            }
            return threads.submit(stack.call, path, body)

        yield submit


def coordinator(stack: RouterStack) -> dict[str, Any]:
    return dict(stack.admin("coordinator")[1])


def busy(stack: RouterStack) -> int:
    """Wait until a request is being answered; the coordinator's process."""

    def works() -> bool:
        state = coordinator(stack)
        return bool(state["phase"] == "ready" and state["requests_in_flight"])

    wait_for(works, 20, "request in flight")
    time.sleep(0.3)
    return int(coordinator(stack)["pid"])


def starts_since(stack: RouterStack, before: list[str]) -> list[dict[str, Any]]:
    return [state for state in stack.admin("starts")[1] if state["start_id"] not in before]


def start_ids(stack: RouterStack) -> list[str]:
    return [state["start_id"] for state in stack.admin("starts")[1]]


def stream(stack: RouterStack, path: str, tokens: int = 1500) -> Any:
    body = {
        "model": "smollm2",
        "messages": QUESTION,
        "stream": True,
        "max_tokens": tokens,
        "ignore_eos": True,
        "options": {"num_predict": tokens},
    }
    return stack.send(path, body)[1]


def test_coordinator_killed_before_the_first_token_costs_no_request(
    stack: RouterStack, ask: Callable[..., Future[Answer]]
) -> None:
    before = start_ids(stack)
    asked = [ask(200), ask(200), ask(200)]
    os.kill(busy(stack), signal.SIGKILL)
    answers = [each.result() for each in asked]
    assert [status for status, _, _ in answers] == [200] * 3
    assert [answer["usage"]["completion_tokens"] for _, answer, _ in answers] == [200] * 3
    assert "2" in [headers.get("x-llama-attempt") for _, _, headers in answers]
    assert len(starts_since(stack, before)) == 2, "concurrent failures cause one restart"
    last = stack.admin("failures")[1][-1]
    assert (last["model"], last["start_id"]) == ("smollm2", starts_since(stack, before)[0]["start_id"])
    told = os.access("/dev/kmsg", os.R_OK)  # that the kernel did not kill it, only its log can say
    assert last["diagnosis"]["class"] == ("stopped" if told else "unknown")
    assert last["diagnosis"]["evidence"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_coordinator_killed_in_a_stream_ends_it_with_the_diagnosis_and_comes_back(
    stack: RouterStack, path: str
) -> None:
    answer = stream(stack, path)
    for _ in range(4):
        answer.readline()
    pid = coordinator(stack)["pid"]
    os.kill(pid, signal.SIGKILL)
    lines = [line.decode() for line in answer if line.strip()]
    last = json.loads(lines[-1].removeprefix("data: "))
    details = last["details"] if path.startswith("/api") else last["error"]
    assert not {"diagnosis", "state"} & set(details)
    assert details["retry_after_s"] >= 1
    assert isinstance(last["error"], str) is path.startswith("/api")
    wait_for(lambda: coordinator(stack)["phase"] == "ready", 20, "the model is loaded again")
    assert coordinator(stack)["pid"] != pid


def test_backend_that_is_killed_and_comes_back_costs_no_request(
    stack: RouterStack, ask: Callable[..., Future[Answer]]
) -> None:
    asked = ask(200)
    busy(stack)
    stack.backends[1].kill()
    stack.backends[1].start()
    assert asked.result()[0] == 200
    assert [share["node"] for share in coordinator(stack)["plan"]["shares"]] == ["node1", "node2"]
    assert stack.admin("failures")[1][-1]["failure_class"] == "backend_lost"


def test_backend_that_does_not_come_back_is_planned_without(
    stack: RouterStack, ask: Callable[..., Future[Answer]]
) -> None:
    asked = ask(200)
    busy(stack)
    stack.backends[1].kill()
    status, answer, _ = asked.result()
    assert (status, answer["usage"]["completion_tokens"]) == (200, 200)
    state = coordinator(stack)
    assert [share["node"] for share in state["plan"]["shares"]] == ["node1"]
    assert state["distributed"] is True


def test_without_any_backend_the_answer_says_which_are_missing_and_when_to_ask_again(
    stack: RouterStack, ask: Callable[..., Future[Answer]]
) -> None:
    for backend in stack.backends:
        backend.kill()
    status, answer, headers = ask(1).result()
    assert (status, answer["error"]["class"]) == (503, "backend_unreachable")
    assert "node1" in answer["error"]["message"]
    assert "node2" in answer["error"]["message"]
    assert int(headers["retry-after"]) >= 1


def test_stopped_backend_is_found_by_a_canary_and_planned_without(
    stack: RouterStack, ask: Callable[..., Future[Answer]]
) -> None:
    before = start_ids(stack)
    asked = ask(400)
    busy(stack)
    stack.backends[1].signal(signal.SIGSTOP)
    try:
        assert asked.result()[0] == 200
    finally:
        stack.backends[1].signal(signal.SIGCONT)
    stalled, second = starts_since(stack, before)
    assert stalled["diagnosis"]["class"] == "backend_stalled"
    assert [s["name"] for s in stalled["signals"]] == ["SIGKILL"]
    assert stalled["signals"][0]["requests_in_flight"] == 1
    assert [share["node"] for share in second["plan"]["shares"]] == ["node1"]


def test_slow_answer_is_left_alone(stack: RouterStack, ask: Callable[..., Future[Answer]]) -> None:
    before = start_ids(stack)
    status, answer, _ = ask(500).result()
    assert (status, answer["usage"]["completion_tokens"]) == (200, 500)
    assert answer["timings"]["predicted_ms"] > 2_000, "it took longer than a suspicion"
    (only,) = starts_since(stack, before)
    assert only["signals"] == []


def test_coordinator_told_to_stop_by_somebody_else_costs_no_request(
    stack: RouterStack, ask: Callable[..., Future[Answer]]
) -> None:
    asked = ask(200)
    os.kill(busy(stack), signal.SIGTERM)
    status, answer, headers = asked.result()
    assert (status, answer["usage"]["completion_tokens"]) == (200, 200)
    assert headers["x-llama-attempt"] == "2"


def test_hundred_first_requests_start_one_coordinator_and_one_more_is_refused(
    stack: RouterStack, ask: Callable[..., Future[Answer]]
) -> None:
    before = start_ids(stack)
    stack.backends[0].signal(signal.SIGSTOP)  # nothing is started while it does not answer
    try:
        asked = [ask(1) for _ in range(QUEUE)]
        wait_for(lambda: len(stack.admin("queue")[1]["waiting"]) == QUEUE, 20, "full queue")
        waiting = stack.admin("queue")[1]["waiting"]
        status, answer, headers = ask(1).result()
    finally:
        stack.backends[0].signal(signal.SIGCONT)
    assert (status, answer["error"]["class"]) == (503, "queue_full")
    assert int(headers["retry-after"]) >= 1
    assert [entry["position"] for entry in waiting] == list(range(1, QUEUE + 1))
    assert waiting[0]["age_s"] >= waiting[-1]["age_s"] > 0
    answers = [each.result() for each in asked]
    assert [status for status, _, _ in answers] == [200] * QUEUE
    positions = sorted(int(headers["x-llama-queue-position"]) for _, _, headers in answers)
    assert positions == list(range(1, QUEUE + 1))
    assert len(starts_since(stack, before)) == 1


def test_models_take_turns_under_load_and_none_starves(
    stack: RouterStack, ask: Callable[..., Future[Answer]]
) -> None:
    before = start_ids(stack)
    asked = [ask(20, model=("smollm2", "other")[n % 2]) for n in range(40)]
    assert [each.result()[0] for each in asked] == [200] * 40
    starts = starts_since(stack, before)
    assert 2 <= len(starts) <= 20, "a turn each, not a load for each request"
    assert all(s["requests_in_flight"] == 0 for state in starts for s in state["signals"])


def test_budget_of_restarts_that_is_spent_refuses_with_the_diagnosis(
    stack: RouterStack, ask: Callable[..., Future[Answer]]
) -> None:
    for _ in range(BUDGET):
        wait_for(lambda: ask(1).result()[0] == 200, 20, "answer")
        os.kill(coordinator(stack)["pid"], signal.SIGKILL)
        wait_for(lambda: coordinator(stack)["phase"] != "ready" or not alive(stack), 5, "end")
    wait_for(lambda: ask(1).result()[0] == 503, 20, "refusal")
    status, answer, headers = ask(1).result()
    assert (status, answer["error"]["class"]) == (503, "restart_budget_spent")
    assert answer["error"]["request_id"] == headers["x-request-id"]
    assert stack.admin("failures")[1][-1]["diagnosis"]["evidence"]
    assert 1 <= int(headers["retry-after"]) <= 60
    assert stack.admin("load", {"model": "smollm2"})[0] == 200, "an operator's load is not refused"
    assert ask(1).result()[0] == 200


def alive(stack: RouterStack) -> bool:
    return Path(f"/proc/{coordinator(stack)['pid']}").exists()


def test_stranger_on_the_port_is_a_clear_error_at_once(
    stack: RouterStack, ask: Callable[..., Future[Answer]]
) -> None:
    with socket.create_server(("127.0.0.1", stack.coordinator_port), reuse_port=True):
        status, answer, _ = ask(1).result()
    assert (status, answer["error"]["class"]) == (502, "port_in_use")
    assert ask(1).result()[0] == 200


def test_backend_that_something_else_is_connected_to_is_not_taken(
    stack: RouterStack, ask: Callable[..., Future[Answer]]
) -> None:
    with socket.create_connection(("127.0.0.1", stack.backends[0].port)):
        status, answer, headers = ask(1).result()
    assert (status, answer["error"]["class"]) == (503, "backends_leased")
    assert stack.backends[0].endpoint not in answer["error"]["message"]
    assert int(headers["retry-after"]) >= 1
    assert ask(1).result()[0] == 200


def test_error_of_the_client_restarts_nothing(stack: RouterStack) -> None:
    assert stack.admin("load", {"model": "smollm2"})[0] == 200
    pid = coordinator(stack)["pid"]
    status, _, _ = stack.call("/v1/chat/completions", {"model": "smollm2", "messages": "no list"})
    assert 400 <= status < 600
    assert coordinator(stack)["pid"] == pid
    assert coordinator(stack)["signals"] == []


def test_client_that_leaves_the_queue_frees_its_place(stack: RouterStack) -> None:
    stack.backends[0].signal(signal.SIGSTOP)
    try:
        body = json.dumps({"model": "smollm2", "messages": QUESTION}).encode()
        with socket.create_connection(("127.0.0.1", stack.port)) as client:
            head = (
                "POST /v1/chat/completions HTTP/1.1\r\nhost: router\r\n"
                f"authorization: Bearer router-key-of-the-tests\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            client.sendall(head.encode() + body)
            wait_for(lambda: len(stack.admin("queue")[1]["waiting"]) == 1, 5, "place")
        wait_for(lambda: stack.admin("queue")[1]["waiting"] == [], 5, "place given up")
    finally:
        stack.backends[0].signal(signal.SIGCONT)


def test_each_step_of_a_recovery_is_logged_when_asked_for(
    stack: RouterStack, ask: Callable[..., Future[Answer]]
) -> None:
    asked = ask(200)
    os.kill(busy(stack), signal.SIGKILL)
    assert asked.result()[0] == 200
    lines = (stack.folder / "router.log").read_text().splitlines()
    steps = [entry for line in lines if (entry := json.loads(line))["level"] == "debug"]
    assert {"failure_counted", "backends_checked", "canary_answered"} <= {step["event"] for step in steps}
    assert not [step for step in steps if "request_id" in step], "a recovery belongs to no request"


def test_stop_of_the_router_refuses_who_waits_finishes_who_is_answered_and_ends_the_coordinator_last(
    stack: RouterStack, ask: Callable[..., Future[Answer]]
) -> None:
    answered = ask(10)
    busy(stack)
    waiting = ask(1, model="other")
    wait_for(lambda: len(stack.admin("queue")[1]["waiting"]) == 1, 5, "a place in the queue")
    state = coordinator(stack)
    os.kill(stack.router.pid, signal.SIGTERM)
    try:
        assert (waiting.result()[0], waiting.result()[1]["error"]["class"]) == (503, "stopping")
        assert answered.result()[0] == 200
        assert stack.router.wait(40) in (0, -signal.SIGTERM)
        record = json.loads((Path(state["log_dir"]) / "start.json").read_text())
        (sent,) = record["signals"]
        assert sent["requests_in_flight"] == 0
        # Its turn may have been over: then it was about to make room for the one that waited.
        assert sent["reason"] in ("the router stops", "other is to be loaded")
        assert record["exit"]["code"] == 0
    finally:
        stack.start_router()


def test_model_that_nobody_asks_for_is_unloaded(llama_build: Path, smollm2: Path, tmp_path: Path) -> None:
    stack = RouterStack(llama_build, smollm2, tmp_path, idle_unload_s=1, keep_starts=1)
    try:
        for _ in range(2):
            body = {"model": "smollm2", "messages": QUESTION, "max_tokens": 1}
            assert stack.call("/v1/chat/completions", body)[0] == 200
            wait_for(lambda: coordinator(stack)["phase"] == "ended", 10, "unloaded")
        state = coordinator(stack)
        assert state["signals"][0]["reason"] == "idle for 1 s"
        assert state["diagnosis"]["class"] == "stopped"
        kept = [Path(state["log_dir"])]
        wait_for(lambda: list((tmp_path / "starts").iterdir()) == kept, 5, "older log folders are gone")
    finally:
        stack.close()


def test_answer_that_outlasts_the_drain_ends_in_an_error_with_the_recorded_signal(
    llama_build: Path, smollm2: Path, tmp_path: Path
) -> None:
    stack = RouterStack(llama_build, smollm2, tmp_path, drain_s=1)
    try:
        answer = stream(stack, "/v1/chat/completions", 2000)
        answer.readline()
        state = coordinator(stack)
        os.kill(stack.router.pid, signal.SIGTERM)
        last = json.loads([line for line in answer if line.strip()][-1].removeprefix(b"data: "))
        assert last["error"]["class"] == "stopped_busy"
        stack.router.wait(40)
        record = json.loads((Path(state["log_dir"]) / "start.json").read_text())
        assert record["signals"][0]["reason"] == "the router stops"
        assert record["signals"][0]["requests_in_flight"] == 1
    finally:
        stack.close()
