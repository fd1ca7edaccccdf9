"""Requests through the gate: their keys and ids, and what is counted and logged of them."""

import asyncio
import json
import logging

import pytest
from harness.router.config import RouterConfig
from harness.router.http.auth import Gate
from harness.router.http.metrics import Metrics
from harness.router.http.stream_stats import counts
from starlette.types import Message, Receive, Scope, Send

USER, OTHER_USER, ADMIN = "a-key-of-one-user", "the-key-of-another", "the-key-of-admins"
CONFIG = RouterConfig(address="127.0.0.1")


def event(**delta: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


USAGE = b'data: {"choices":[],"usage":{"completion_tokens":3,"prompt_tokens":31,"total_tokens":34}}\n\n'
TIMINGS = b'data: {"choices":[],"timings":{"cache_n":30,"prompt_n":1,"predicted_n":3,"predicted_ms":9.5}}\n\n'
DONE = b"data: [DONE]\n\n"


class GateRequest:
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
        model: str = "",
        reason: str = "",
    ) -> None:
        self.metrics = Metrics()
        self.sent: list[Message] = []
        self.live_meanwhile = 0

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"] |= {"route": "pool", "route_reason": reason}
            scope["state"]["stats"].model = model
            start = [(b"content-type", kind.encode())]
            await send({"type": "http.response.start", "status": status, "headers": start})
            for piece in pieces:
                self.live_meanwhile = len(self.metrics.live)
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        async def receive() -> Message:
            return {"type": "http.request", "body": b""}

        async def send(message: Message) -> None:
            self.sent.append(message)

        gate = Gate(
            answer, router_keys=[USER, OTHER_USER], admin_key=ADMIN, metrics=self.metrics, config=CONFIG
        )
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
    request = GateRequest([*pieces, DONE])
    assert b"".join(message["body"] for message in request.sent[1:]) == b"".join([*pieces, DONE])
    assert request.value("ttft_seconds_count", route="pool") == 1
    assert request.value("itl_seconds_count", route="pool") == 2
    assert request.value("tokens_total", kind="prompt") == 31
    assert request.value("tokens_total", kind="completion") == 3
    assert request.value("requests_total", route="pool", api="openai", status="200") == 1
    assert (request.live_meanwhile, len(request.metrics.live)) == (1, 0)


def test_events_without_text_are_no_tokens() -> None:
    request = GateRequest([event(role="assistant"), event(content=""), USAGE, DONE])
    assert request.value("ttft_seconds_count", route="pool") is None


def test_stream_without_usage_is_counted_by_its_timings_or_by_its_events() -> None:
    words = [event(content=word) for word in "abcd"]
    timed = GateRequest([*words, TIMINGS, DONE])
    assert timed.value("tokens_total", kind="prompt") == 31
    assert timed.value("tokens_total", kind="completion") == 3
    assert GateRequest([*words, DONE]).value("tokens_total", kind="completion") == 4


def test_ollama_lines_are_counted() -> None:
    line = b'{"model":"m","message":{"role":"assistant","content":"x"},"done":false}\n'
    last = b'{"model":"m","done":true,"prompt_eval_count":7,"eval_count":2,"eval_duration":5}\n'
    request = GateRequest([line, line, last], path="/api/chat", kind="application/x-ndjson")
    assert request.value("tokens_total", kind="prompt") == 7
    assert request.value("tokens_total", kind="completion") == 2
    assert request.value("requests_total", route="pool", api="ollama", status="200") == 1


def test_text_of_a_model_is_never_taken_for_a_count() -> None:
    text = json.dumps({"content": '"prompt_tokens":999, "completion_tokens":999'}).encode()
    assert counts(text) == (0, None)


def test_stream_that_ended_with_an_error_is_counted_as_broken() -> None:
    broken = b'data: {"error": {"class": "rpc_backend_lost"}}\n\n'
    assert GateRequest([event(content="a"), broken]).value("streams_broken_total") == 1
    quoted = event(content='data: {"error"')
    assert GateRequest([quoted, DONE]).value("streams_broken_total") == 0


def test_error_is_counted_by_status_without_tokens() -> None:
    request = GateRequest([b'{"error":{}}'], status=502, kind="application/json")
    assert request.value("requests_total", route="pool", api="openai", status="502") == 1
    assert request.value("tokens_total", kind="prompt") == 0


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
    assert GateRequest([b"{}"], path=path, key=key).status == status


def test_request_id_of_the_client_is_kept_unless_it_could_forge_a_log_line() -> None:
    kept = GateRequest([], headers=[(b"x-request-id", b"mine-1")])
    assert kept.header(b"x-request-id") == b"mine-1"
    made = GateRequest([], headers=[(b"x-request-id", b'a"\n{"event":"x"}')])
    assert len(made.header(b"x-request-id") or b"") == 32


def test_one_log_line_shows_the_route_of_a_request_and_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llama_router")
    GateRequest([event(content="a"), USAGE, DONE], model="tiny", reason="node1 serves it")
    [record] = caplog.records
    fields = record.__dict__["fields"]
    assert record.getMessage() == "request"
    assert (fields["route"], fields["model"], fields["reason"]) == ("pool", "tiny", "node1 serves it")
    assert (fields["prompt_tokens"], fields["completion_tokens"]) == (31, 3)


@pytest.mark.parametrize("path", ["/admin/coordinator", "/router/decisions"])
def test_other_peoples_models_are_for_the_administrator(path: str) -> None:
    assert GateRequest([b""], path=path, key=USER).status == 401
    assert GateRequest([b""], path=path, key=ADMIN).status == 200
