"""What the gate admits, and what is counted of the bytes that pass through it."""

import asyncio
import json
from pathlib import Path

import pytest
from harness.contracts.coordinator_state import CoordinatorPhase
from harness.contracts.diagnosis import Confidence, Diagnosis, FailureClass
from harness.errors import HarnessError
from harness.router.api.health import not_ready, pool_states
from harness.router.config import Backend, RouterConfig, read_keys
from harness.router.http.auth import Gate
from harness.router.http.metrics import Metrics
from harness.router.http.stream_stats import counts
from starlette.types import Message, Receive, Scope, Send

USER, OTHER_USER, ADMIN = "a-key-of-one-user", "the-key-of-another", "the-key-of-admins"
BACKEND = Backend(node="a", endpoint="10.0.0.2:50052", memory_bytes=1)


def event(**delta: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


USAGE = b'data: {"choices":[],"usage":{"completion_tokens":3,"prompt_tokens":31,"total_tokens":34}}\n\n'
TIMINGS = b'data: {"choices":[],"timings":{"cache_n":30,"prompt_n":1,"predicted_n":3,"predicted_ms":9.5}}\n\n'
DONE = b"data: [DONE]\n\n"


class Asked:
    """One request through a gate whose application answers with the given pieces."""

    def __init__(
        self,
        pieces: list[bytes],
        *,
        path: str = "/v1/chat/completions",
        key: str = USER,
        status: int = 200,
        kind: str = "text/event-stream",
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> None:
        self.metrics = Metrics()
        self.sent: list[Message] = []
        self.live_while_served = 0

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"]["route"] = "pool"
            start = [(b"content-type", kind.encode())]
            await send({"type": "http.response.start", "status": status, "headers": start})
            for piece in pieces:
                self.live_while_served = len(self.metrics.live)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        async def receive() -> Message:
            return {"type": "http.request", "body": b""}

        async def send(message: Message) -> None:
            self.sent.append(message)

        gate = Gate(answer, router_keys=[USER, OTHER_USER], admin_key=ADMIN, metrics=self.metrics)
        given = [(b"authorization", f"Bearer {key}".encode()), *(headers or [])]
        scope = {"type": "http", "method": "POST", "path": path, "headers": given}
        asyncio.run(gate(scope, receive, send))

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    def header(self, name: bytes) -> bytes | None:
        return dict(self.sent[0]["headers"]).get(name)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value("llama_router_" + name, labels)


def test_stream_is_counted_and_passes_unchanged() -> None:
    pieces = [event(role="assistant"), event(content="On") + event(content="ce"), event(content=" up"), USAGE]
    asked = Asked([*pieces, DONE])
    assert b"".join(message["body"] for message in asked.sent[1:]) == b"".join([*pieces, DONE])
    assert asked.value("ttft_seconds_count", route="pool") == 1
    assert asked.value("itl_seconds_count", route="pool") == 2
    assert asked.value("tokens_total", kind="prompt") == 31
    assert asked.value("tokens_total", kind="completion") == 3
    assert asked.value("requests_total", route="pool", api="openai", status="200") == 1
    assert (asked.live_while_served, len(asked.metrics.live)) == (1, 0)


def test_events_without_text_are_no_tokens() -> None:
    asked = Asked([event(role="assistant"), event(content=""), USAGE, DONE])
    assert asked.value("ttft_seconds_count", route="pool") is None


def test_stream_without_usage_is_counted_by_its_timings_or_by_its_events() -> None:
    words = [event(content=word) for word in "abcd"]
    timed = Asked([*words, TIMINGS, DONE])
    assert timed.value("tokens_total", kind="prompt") == 31
    assert timed.value("tokens_total", kind="completion") == 3
    assert Asked([*words, DONE]).value("tokens_total", kind="completion") == 4


def test_ollama_lines_are_counted() -> None:
    line = b'{"model":"m","message":{"role":"assistant","content":"x"},"done":false}\n'
    last = b'{"model":"m","done":true,"prompt_eval_count":7,"eval_count":2,"eval_duration":5}\n'
    asked = Asked([line, line, last], path="/api/chat", kind="application/x-ndjson")
    assert asked.value("tokens_total", kind="prompt") == 7
    assert asked.value("tokens_total", kind="completion") == 2
    assert asked.value("requests_total", route="pool", api="ollama", status="200") == 1


def test_text_of_a_model_is_never_taken_for_a_count() -> None:
    said = json.dumps({"content": '"prompt_tokens":999, "completion_tokens":999'}).encode()
    assert counts(said) == (0, None)


def test_stream_that_ended_with_an_error_is_counted_as_broken() -> None:
    broken = b'data: {"error": {"class": "rpc_backend_lost"}}\n\n'
    assert Asked([event(content="a"), broken]).value("streams_broken_total") == 1
    quoted = event(content='data: {"error"')
    assert Asked([quoted, DONE]).value("streams_broken_total") == 0


def test_error_is_counted_by_status_without_tokens() -> None:
    asked = Asked([b'{"error":{}}'], status=502, kind="application/json")
    assert asked.value("requests_total", route="pool", api="openai", status="502") == 1
    assert asked.value("tokens_total", kind="prompt") == 0


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [
        ("/v1/models", USER, 200),
        ("/v1/models", OTHER_USER, 200),
        ("/v1/models", ADMIN, 401),
        ("/admin/load", USER, 401),
        ("/admin/load", ADMIN, 200),
        ("/metrics", USER, 200),
        ("/metrics", ADMIN, 200),
        ("/metrics", "wrong", 401),
        ("/readyz", "wrong", 200),
        ("/healthz", "wrong", 200),
        ("/readyz/x", "wrong", 401),
    ],
)
def test_each_path_has_its_keys(path: str, key: str, status: int) -> None:
    assert Asked([b"{}"], path=path, key=key).status == status


def test_request_id_of_the_client_is_kept_unless_it_could_forge_a_log_line() -> None:
    kept = Asked([], headers=[(b"x-request-id", b"mine-1")])
    assert kept.header(b"x-request-id") == b"mine-1"
    made = Asked([], headers=[(b"x-request-id", b'a"\n{"event":"x"}')])
    assert len(made.header(b"x-request-id") or b"") == 32


def test_keys_of_several_users_stand_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "router.key"
    file.write_text(f"# the team\n{USER}\n\n{OTHER_USER}\n")
    assert read_keys(file) == [USER, OTHER_USER]
    file.write_text(f"{USER}\nshort\n")
    with pytest.raises(HarnessError, match="16 characters"):
        read_keys(file)
    file.write_text("# nobody\n")
    with pytest.raises(HarnessError, match="16 characters"):
        read_keys(file)


def test_states_that_are_gone_are_not_shown_any_more() -> None:
    metrics = Metrics()
    metrics.show_states("backend", {"node1": "busy", "node2": "idle"})
    metrics.show_states("backend", {"node1": "idle"})
    metrics.show_phase(CoordinatorPhase.READY)
    page = metrics.page("")[0].decode()
    assert 'llama_router_backend_state{node="node1",state="idle"} 1.0' in page
    assert "busy" not in page
    assert "node2" not in page
    assert 'llama_router_coordinator_phase{phase="ready"} 1.0' in page
    assert 'llama_router_coordinator_phase{phase="starting"} 0.0' in page


def test_ends_and_restarts_are_counted_by_diagnosis() -> None:
    metrics = Metrics()
    diagnosis = Diagnosis(
        failure_class=FailureClass.OOM_KILLED, confidence=Confidence.CERTAIN, evidence=[], advice=""
    )
    metrics.coordinator_ended(diagnosis)
    metrics.coordinator_restarted(diagnosis)
    metrics.coordinator_ended(None)
    value = metrics.registry.get_sample_value
    assert value("llama_router_coordinator_ends_total", {"diagnosis": "oom_killed"}) == 1
    assert value("llama_router_coordinator_restarts_total", {"diagnosis": "oom_killed"}) == 1
    assert value("llama_router_coordinator_ends_total", {"diagnosis": "unknown"}) == 1


def test_router_is_ready_where_some_request_can_be_served(tmp_path: Path) -> None:
    server = tmp_path / "llama-server"
    nothing = RouterConfig(address="127.0.0.1", llama_server=server)
    assert not_ready(nothing, closing=False) == ["neither a pool server nor a backend is configured"]
    config = nothing.model_copy(update={"backends": [BACKEND]})
    assert "no llama-server" in not_ready(config, closing=False)[0]
    server.touch(mode=0o755)
    assert not_ready(config, closing=False) == []
    assert not_ready(config, closing=True) == ["the router is stopping"]


def test_a_nodes_pool_server_is_ready_set_aside_or_unseen_and_the_best_of_several_counts() -> None:
    servers = [
        {"node": "node1", "seen": True, "set_aside_s": 4.5},
        {"node": "node1", "seen": True, "set_aside_s": 0.0},
        {"node": "node2", "seen": True, "set_aside_s": 0.1},
        {"node": "node3", "seen": False, "set_aside_s": 0.0},
    ]
    assert pool_states(servers) == {"node1": "ready", "node2": "set_aside", "node3": "unseen"}
    assert pool_states(servers[:1]) == {"node1": "set_aside"}


def test_one_log_line_says_of_a_request_which_way_it_went_and_why() -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] |= {"route": "pool", "route_reason": "node1 serves it"}
        scope["state"]["observed"].model = "tiny"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        pass

    lines: list[dict[str, object]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "harness.router.http.auth.log", lambda event, **said: lines.append({"event": event} | said)
        )
        gate = Gate(answer, router_keys=[USER], admin_key=ADMIN, metrics=Metrics())
        key = [(b"authorization", f"Bearer {USER}".encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": key}
        asyncio.run(gate(scope, receive, send))
    [line] = lines
    assert (line["event"], line["route"], line["model"]) == ("request", "pool", "tiny")
    assert line["reason"] == "node1 serves it"
