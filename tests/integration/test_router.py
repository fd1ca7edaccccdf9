"""The router with real rpc-server and llama-server processes on loopback."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness.llama.releases.catalogue import installed_release
from tests.integration.router_stack import ADMIN_KEY, ROUTER_KEY, RouterStack, listens, wait_for

pytestmark = pytest.mark.integration

QUESTION = [{"role": "user", "content": "Say hello."}]
LONG = {"messages": QUESTION, "max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def shared(
    llama_build: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RouterStack]:
    stack = RouterStack(llama_build, smollm2, tmp_path_factory.mktemp("router"))
    yield stack
    stack.close()


@pytest.fixture
def stack(shared: RouterStack) -> RouterStack:
    shared.reset()
    return shared


def load(stack: RouterStack, **wanted: Any) -> dict[str, Any]:
    status, state = stack.admin("load", {"model": "smollm2", **wanted})
    assert status == 200, state
    return dict(state)


class Stream:
    """A streamed request; its lines are read as they are asked for."""

    def __init__(self, stack: RouterStack, path: str, body: dict[str, Any]) -> None:
        self.connection, self.answer = stack.send(path, {"model": "smollm2", "stream": True} | body)

    def tokens(self, count: int) -> None:
        """Read until so many pieces of text have come."""
        while count:
            line = self.answer.readline()
            assert line, "the stream ended early"
            count -= b'"content":"' in line or b'"content": "' in line

    def leave(self) -> None:
        """Hang up."""
        self.answer.close()
        self.connection.close()

    def rest(self) -> list[str]:
        """Everything that is still to come."""
        return [line.decode() for line in self.answer if line.strip()]


def test_load_puts_every_layer_on_the_backends_of_the_plan(stack: RouterStack) -> None:
    state = load(stack)
    assert state["phase"] == "ready"
    assert state["distributed"] is True
    assert state["report"]["offloaded"] == state["report"]["layers_total"] == 31
    held = {b["node"]: b["model_bytes"] for b in state["report"]["buffers"] if b["node"]}
    assert sorted(held) == ["node1", "node2"]
    assert min(held.values()) > 20_000_000
    timings = state["timings"]
    assert timings["requested_ns"] < timings["exec_ns"] < timings["healthy_ns"] < timings["ready_ns"]
    overhead = timings["exec_ns"] - timings["requested_ns"] + timings["ready_ns"] - timings["healthy_ns"]
    assert overhead > 0
    assert {"connect", "transfer", "kv"} <= set(timings["phases"])
    assert Path(f"/proc/{state['pid']}/oom_score_adj").read_text().strip() == "500"
    ignored = Path(f"/proc/{state['pid']}/status").read_text().split("SigIgn:")[1].split()[0]
    assert int(ignored, 16) & (1 << (signal.SIGPIPE - 1)), "SIGPIPE must stay ignored"


def test_no_offloaded_layer_is_reported_as_not_distributed(stack: RouterStack) -> None:
    state = load(stack, n_gpu_layers=0)
    assert state["distributed"] is False
    assert state["report"]["offloaded"] == 0
    assert not [b for b in state["report"]["buffers"] if b["device"].startswith("RPC") and b["model_bytes"]]


def test_server_that_keeps_the_layers_to_itself_is_stopped(stack: RouterStack) -> None:
    status, answer = stack.admin("load", {"model": "smollm2", "flags": ["--override-tensor", ".*=CPU"]})
    assert (status, answer["error"]["class"]) == (502, "not_distributed")
    assert "node1, node2" in answer["error"]["message"]
    state = answer["error"]["state"]
    assert (state["phase"], state["distributed"]) == ("ended", False)
    assert state["diagnosis"]["class"] == "not_distributed"
    assert [s["name"] for s in state["signals"]] == ["SIGTERM"]


def test_load_on_chosen_nodes_uses_only_those(stack: RouterStack) -> None:
    state = load(stack, nodes=["node2"])
    assert [share["node"] for share in state["plan"]["shares"]] == ["node2"]
    assert state["distributed"] is True
    status, answer = stack.admin("load", {"model": "smollm2", "nodes": ["node9"]})
    assert (status, answer["error"]["class"]) == (400, "unknown_node")


def test_loading_again_as_asked_before_changes_nothing(stack: RouterStack) -> None:
    assert load(stack)["pid"] == load(stack)["pid"]
    assert load(stack)["pid"] != load(stack, context=1024)["pid"]


def test_chat_completion_loads_the_model_and_is_relayed(stack: RouterStack) -> None:
    body = {"model": "smollm2", "messages": QUESTION, "max_tokens": 5, "ignore_eos": True}
    status, answer, headers = stack.call("/v1/chat/completions", body)
    assert status == 200, answer
    assert headers["x-llama-route"] == "coordinator"
    assert headers["x-request-id"]
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["timings"]["predicted_n"] == 5
    assert stack.admin("coordinator")[1]["requests_in_flight"] == 0


def test_streamed_chat_completion_arrives_token_by_token(stack: RouterStack) -> None:
    stream = Stream(
        stack, "/v1/chat/completions", {"messages": QUESTION, "max_tokens": 5, "ignore_eos": True}
    )
    assert stream.answer.headers["content-type"].startswith("text/event-stream")
    stream.tokens(1)
    assert stack.admin("coordinator")[1]["phase"] == "ready"
    assert stream.rest()[-1].strip() == "data: [DONE]"


def test_discovery_leaves_leased_backends_alone_and_names_the_others(
    stack: RouterStack, llama_build: Path
) -> None:
    release = installed_release(llama_build / "llama-server")
    assert release
    load(stack, nodes=["node1"])
    status, answer = stack.admin("discover")
    assert status == 200
    found = {one["node"]: one for one in answer["backends"]}
    assert [(name, one["status"]) for name, one in found.items()] == [("node1", "busy"), ("node2", "idle")]
    assert found["node1"]["reason"] == "leased to our coordinator (smollm2)"
    assert (found["node2"]["version"], len(found["node2"]["devices"])) == (release.protocol, 1)
    assert stack.call("/v1/completions", {"model": "smollm2", "prompt": "a", "max_tokens": 1})[0] == 200


def test_discovery_of_a_network_that_is_not_ours_is_refused(stack: RouterStack) -> None:
    status, answer = stack.admin("discover?cidr=8.8.8.0/24")
    assert (status, answer["error"]["class"]) == (400, "bad_request")
    assert "not a private network" in answer["error"]["message"]


def test_each_decision_is_explained(stack: RouterStack) -> None:
    _, _, headers = stack.call("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 1})
    assert (headers["x-llama-route"], headers["x-llama-route-reason"]) == ("pool", "node1 lists it")
    _, _, headers = stack.call("/v1/completions", {"model": "other", "prompt": "a", "max_tokens": 1})
    assert headers["x-llama-route-reason"].startswith("no pool server has it; 31 layers and")
    assert stack.call("/router/decisions")[0] == 401, "they show other people's models"
    kept = stack.call("/router/decisions", key=ADMIN_KEY)[1]["decisions"]
    assert [one["model"] for one in kept[-2:]] == ["tiny", "other"]
    assert kept[-1]["request_id"] == headers["x-request-id"]
    assert kept[-1]["need_bytes"] > kept[-1]["file_bytes"]
    servers = stack.admin("pool")[1]["servers"]
    assert [(one["models"], one["in_flight"]) for one in servers if one["kind"] == "openai"] == [
        (["tiny"], 0)
    ]


def test_plain_completion_is_relayed(stack: RouterStack) -> None:
    body = {"model": "smollm2", "prompt": "Once upon", "max_tokens": 3, "ignore_eos": True}
    status, answer, _ = stack.call("/v1/completions", body)
    assert status == 200
    assert answer["usage"]["completion_tokens"] == 3


def test_ollama_chat_has_counts_and_nanoseconds(stack: RouterStack) -> None:
    body = {
        "model": "smollm2",
        "messages": QUESTION,
        "stream": False,
        "options": {"num_predict": 4, "temperature": 0},
    }
    status, answer, headers = stack.call("/api/chat", body)
    assert status == 200, answer
    assert headers["x-llama-route"] == "coordinator"
    assert (answer["done"], answer["done_reason"], answer["eval_count"]) == (True, "length", 4)
    assert answer["message"]["content"]
    assert 1_000_000 < answer["eval_duration"] < answer["total_duration"]
    assert answer["load_duration"] > 100_000_000, "this request loaded the model"


def test_ollama_stream_is_lines_of_json(stack: RouterStack) -> None:
    stream = Stream(
        stack, "/api/chat", {"messages": QUESTION, "options": {"num_predict": 4, "temperature": 0}}
    )
    lines = [json.loads(line) for line in stream.rest()]
    assert [line["done"] for line in lines] == [False] * 4 + [True]
    assert lines[-1]["eval_count"] == 4
    assert lines[-1]["prompt_eval_count"] > 1
    assert stream.answer.headers["content-type"].startswith("application/x-ndjson")


def test_small_model_is_answered_by_the_pool(stack: RouterStack) -> None:
    body = {"model": "tiny", "messages": QUESTION, "max_tokens": 2}
    status, _, headers = stack.call("/v1/chat/completions", body)
    assert (status, headers["x-llama-route"]) == (200, "pool")
    assert stack.admin("coordinator")[1]["phase"] != "ready"


def test_models_are_listed_in_both_dialects(stack: RouterStack) -> None:
    _, openai, _ = stack.call("/v1/models")
    _, ollama, _ = stack.call("/api/tags")
    assert [m["id"] for m in openai["data"]] == ["ollama-tiny:latest", "other", "smollm2", "tiny"]
    assert [m["name"] for m in ollama["models"]] == ["ollama-tiny:latest", "other", "smollm2", "tiny"]
    routes = {m["name"]: (m["route"], m.get("layers_total")) for m in stack.admin("models")[1]["models"]}
    assert routes == {
        "smollm2": ("coordinator", 31),
        "other": ("coordinator", 31),
        "tiny": ("pool", None),
        "ollama-tiny:latest": ("pool", None),
    }


def test_unknown_model_is_404_and_names_the_known_ones(stack: RouterStack) -> None:
    status, answer, _ = stack.call("/v1/chat/completions", {"model": "llama9:1t", "messages": QUESTION})
    assert status == 404
    assert "llama9:1t" in answer["error"]["message"]
    assert "ollama-tiny:latest, other, smollm2, tiny" in answer["error"]["message"]
    status, answer, _ = stack.call("/api/chat", {"model": "nope", "messages": QUESTION})
    assert (status, isinstance(answer["error"], str)) == (404, True)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/v1/models", None),
        ("/v1/models", "wrong"),
        ("/v1/models", ADMIN_KEY),
        ("/admin/coordinator", ROUTER_KEY),
        ("/admin/coordinator", None),
    ],
)
def test_wrong_key_is_401(stack: RouterStack, path: str, key: str | None) -> None:
    assert stack.call(path, key=key)[0] == 401


def test_health_needs_no_key(stack: RouterStack) -> None:
    assert stack.call("/healthz", key=None)[:2] == (200, {"status": "ok"})


@pytest.mark.parametrize(
    "body", [{"model": "smollm2", "surprise": 1}, {}, {"model": "smollm2", "flags": ["--host", "::"]}]
)
def test_bad_load_request_is_refused_before_anything_starts(stack: RouterStack, body: Any) -> None:
    before = len(stack.admin("starts")[1])
    status, answer = stack.admin("load", body)
    assert status == 400, answer
    assert len(stack.admin("starts")[1]) == before


def test_first_requests_together_start_one_coordinator(stack: RouterStack) -> None:
    before = {state["start_id"] for state in stack.admin("starts")[1]}
    body = {"model": "smollm2", "messages": QUESTION, "max_tokens": 1}
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: stack.call("/v1/chat/completions", body)[0], range(12)))
    assert answers == [200] * 12
    assert len({state["start_id"] for state in stack.admin("starts")[1]} - before) == 1


def test_requests_for_two_models_take_turns(stack: RouterStack) -> None:
    def ask(model: str) -> int:
        body = {"model": model, "messages": QUESTION, "max_tokens": 2}
        return stack.call("/v1/chat/completions", body)[0]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, ["smollm2", "other", "smollm2", "other"])) == [200] * 4


def test_unload_of_an_idle_coordinator_is_a_clean_stop(stack: RouterStack) -> None:
    pid = load(stack)["pid"]
    status, state = stack.admin("unload", {})
    assert status == 200
    assert (state["phase"], state["exit"]["code"]) == ("ended", 0)
    assert state["diagnosis"]["class"] == "stopped"
    assert [(s["name"], s["requests_in_flight"]) for s in state["signals"]] == [("SIGTERM", 0)]
    assert not Path(f"/proc/{pid}").exists()
    record = json.loads((Path(state["log_dir"]) / "start.json").read_text())
    assert record == state
    assert stack.admin("unload", {}) == (200, stack.admin("unload", {})[1])
    assert stack.admin("unload", {})[1]["phase"] == "absent"


def test_stop_in_the_middle_of_a_request_is_called_that(stack: RouterStack) -> None:
    stream = Stream(stack, "/v1/chat/completions", LONG)
    stream.tokens(2)
    status, state = stack.admin("unload", {"deadline_s": 0.2})
    assert status == 200
    assert state["diagnosis"]["class"] == "stopped_busy"
    assert state["signals"][0]["requests_in_flight"] == 1
    assert {sent["name"] for sent in state["signals"]} == {"SIGTERM"}
    stream.rest()


def test_backend_lost_in_the_middle_of_a_stream_ends_it_with_the_diagnosis(stack: RouterStack) -> None:
    stream = Stream(stack, "/v1/chat/completions", LONG)
    stream.tokens(3)
    start_id = stack.admin("coordinator")[1]["start_id"]
    stack.backends[1].kill()
    last = json.loads(stream.rest()[-1].removeprefix("data: "))
    assert last["error"]["class"] == "backend_lost"
    assert not {"diagnosis", "state"} & set(last["error"]), "the inside is for the administrator"
    assert stack.admin("failures")[1][-1]["diagnosis"]["evidence"]
    (state,) = [start for start in stack.admin("starts")[1] if start["start_id"] == start_id]
    assert (state["phase"], state["exit"]["signal"], state["signals"]) == ("ended", signal.SIGABRT, [])
    log = stack.call(f"/admin/logs/{state['start_id']}", key=ADMIN_KEY)[1]
    assert "offloaded 31/31" in log


def test_backend_that_is_not_there_fails_the_load_at_once(stack: RouterStack) -> None:
    stack.backends[1].kill()
    began = time.monotonic()
    status, answer = stack.admin("load", {"model": "smollm2"})
    assert (status, answer["error"]["class"]) == (502, "backend_unreachable")
    assert time.monotonic() - began < 5
    assert answer["error"]["state"]["exit"]["signal"] in (signal.SIGSEGV, signal.SIGABRT)


def test_load_that_does_not_move_ends_at_its_deadline(stack: RouterStack) -> None:
    stack.backends[0].signal(signal.SIGSTOP)
    try:
        status, answer = stack.admin("load", {"model": "smollm2", "deadline_s": 1})
    finally:
        stack.backends[0].signal(signal.SIGCONT)
    assert (status, answer["error"]["class"]) == (504, "hung")
    state = answer["error"]["state"]
    assert (state["phase"], state["diagnosis"]["class"]) == ("ended", "hung")
    assert state["signals"][0]["reason"] == "not ready 1 s after its start"


def test_unload_ends_a_load_that_is_going_on(stack: RouterStack) -> None:
    stack.backends[0].signal(signal.SIGSTOP)
    answers: list[tuple[int, Any]] = []
    loading = threading.Thread(target=lambda: answers.append(stack.admin("load", {"model": "smollm2"})))
    loading.start()
    try:
        wait_for(lambda: stack.admin("coordinator")[1]["phase"] == "starting", 5, "start")
        assert stack.admin("unload", {})[1]["phase"] == "ended"
    finally:
        stack.backends[0].signal(signal.SIGCONT)
    loading.join(10)
    assert (answers[0][0], answers[0][1]["error"]["class"]) == (409, "stopped")


def test_stranger_on_the_coordinators_port_is_not_taken_for_ours(stack: RouterStack) -> None:
    with socket.create_server(("127.0.0.1", stack.coordinator_port), reuse_port=True):
        status, answer = stack.admin("load", {"model": "smollm2"})
    assert (status, answer["error"]["class"]) == (502, "port_in_use")


def test_client_that_leaves_sets_the_server_free(stack: RouterStack) -> None:
    stream = Stream(stack, "/v1/chat/completions", LONG)
    stream.tokens(1)
    assert stack.admin("coordinator")[1]["requests_in_flight"] == 1
    stream.leave()
    wait_for(lambda: stack.admin("coordinator")[1]["requests_in_flight"] == 0, 5, "request let go")
    status, state = stack.admin("unload", {"deadline_s": 5})
    assert (status, state["diagnosis"]["class"]) == (200, "stopped")


def test_waiting_client_that_leaves_sets_the_server_free(stack: RouterStack) -> None:
    load(stack)
    with socket.create_connection(("127.0.0.1", stack.port)) as client:
        body = json.dumps({"model": "smollm2", **LONG}).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: router\r\n"
            f"authorization: Bearer {ROUTER_KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        client.sendall(head.encode() + body)
        wait_for(lambda: stack.admin("coordinator")[1]["requests_in_flight"] == 1, 5, "request")
    wait_for(lambda: stack.admin("coordinator")[1]["requests_in_flight"] == 0, 5, "request let go")


def test_no_key_and_no_prompt_is_logged(stack: RouterStack) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a-secret-question"}], "max_tokens": 1}
    stack.call("/v1/chat/completions", body)
    written = (stack.folder / "router.log").read_text()
    assert '"route": "pool"' in written
    for secret in (ROUTER_KEY, ADMIN_KEY, "pool-key-of-the-tests", "a-secret-question"):
        assert secret not in written


def test_stopping_the_router_stops_the_coordinator_first(stack: RouterStack) -> None:
    state = load(stack)
    os.kill(stack.router.pid, signal.SIGTERM)
    assert stack.router.wait(20) in (0, -signal.SIGTERM)
    assert not Path(f"/proc/{state['pid']}").exists()
    assert not listens(stack.coordinator_port)
    record = json.loads((Path(state["log_dir"]) / "start.json").read_text())
    assert record["signals"][0]["reason"] == "the router stops"
    assert record["exit"]["code"] == 0
    stack.start_router()
