"""Errors of model servers: which are the client's, and how each API shows one."""

import json
from pathlib import Path
from typing import Any

import pytest
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.router.errors import RouterError
from harness.router.http.json_body import dump
from harness.router.proxy.upstream import client_error, upstream_error


def error(message: str) -> dict[str, Any]:
    return {"error": {"code": 500, "message": message, "type": "server_error"}}


@pytest.mark.parametrize(
    ("message", "error_class"),
    [
        ("image input is not supported - hint: you may need to provide the mmproj", "no_vision"),
        ("tools param requires --jinja flag", "no_tools"),
        ("This server does not support embeddings. Start it with `--embeddings`", "no_embeddings"),
        ("Infill is not supported by this model: prefix token is missing. ", "no_insert"),
        ("'messages' is required", "bad_request"),
    ],
)
def test_mistake_of_a_client_is_not_called_the_servers_failure(message: str, error_class: str) -> None:
    refused = client_error(500, error(message), model="m")
    assert refused is not None
    assert (refused.status, refused.error_class) == (400, error_class)


THROWN_BY_THE_SERVER = ("Invalid diff", "The model produced output", "failed to process", "speculative batch")
"""What is thrown over the model's output, not over the request."""
OWN_OF_THE_CLIENT = ("input is too large to process", "path does not exist", "model ")
"""What is reported as the server's own failure, or is no error at all."""
TEXTS = Path("tests/data/llama_server_errors")


@pytest.mark.parametrize("build", ["6751", "11549"])
def test_whatever_a_request_makes_llama_server_throw_is_the_clients_error(build: str) -> None:
    lines = (TEXTS / f"{build}.txt").read_text().splitlines()
    thrown = {line.replace('\\"', '"') for line in lines if not line.startswith("own: ")}
    own = {line.removeprefix("own: ") for line in lines if line.startswith("own: ")}
    assert len(thrown) > 50
    assert len(own) > 5
    of_server = {text for text in thrown if client_error(500, error(text), model="m") is None}
    assert {text for text in of_server if not text.startswith(THROWN_BY_THE_SERVER)} == set()
    of_client = {text for text in own if client_error(500, error(text), model="m") is not None}
    assert {text for text in of_client if not text.startswith(OWN_OF_THE_CLIENT)} == set()


def test_message_that_repeats_the_request_is_cut() -> None:
    refused = client_error(500, error("Failed to parse tools: " + "x" * 100_000), model="m")
    assert refused is not None
    assert len(refused.message) < 600


def test_other_servers_keep_their_own_errors() -> None:
    assert client_error(500, {"error": {"message": "oops", "type": "InternalServerError"}}, model="m") is None
    assert client_error(503, error("Loading model"), model="m") is None


def test_failure_of_a_server_stays_one() -> None:
    assert client_error(500, error("Compute error"), model="m") is None
    assert upstream_error(500, error("Compute error"), model="m").status == 500
    assert client_error(400, error("'messages' is required"), model="m") is None
    assert upstream_error(429, {"error": "slow down"}, model="m").message == "slow down"


def test_errors_have_the_shape_of_each_api() -> None:
    unknown = RouterError(404, "unknown_model", "model 'x' not found", hint="there are: a")
    openai = json.loads(dump(unknown.body()))["error"]
    assert (openai["code"], openai["param"], openai["type"]) == (
        "model_not_found",
        "model",
        "invalid_request_error",
    )
    assert "there are: a" in openai["message"]
    assert unknown.ollama_body()["error"] == "model 'x' not found"


def test_user_gets_class_message_and_id_and_the_administrator_the_rest() -> None:
    state = CoordinatorState(
        phase=CoordinatorPhase.ENDED,
        argv=["/opt/llama.cpp/current/bin/llama-server"],
        pid=4711,
        log_dir="/var/log/llama-harness/coordinator/x",
        diagnosis=Diagnosis(
            failure_class=FailureClass.SEGFAULT,
            evidence=[Evidence(source="server.log:1", line="slot | prompt of somebody")],
            confidence=Confidence.CERTAIN,
            advice="look",
        ),
    )
    message = (
        "m: cannot start /opt/llama.cpp/current/bin/llama-server; http://127.0.0.1:18080 and node2 "
        "(10.0.0.2:50052) do not answer; pid 4711"
    )
    error = RouterError(502, "segfault", message, state=state, retry_after_s=3)
    for body in (error.body("id-1")["error"], error.ollama_body("id-1")["details"]):
        assert isinstance(body, dict)
        assert set(body) == {"class", "type", "param", "code", "message", "request_id", "retry_after_s"}
        assert body["message"] == "m: cannot start ...; ... and node2 (...) do not answer; ..."
    assert error.ollama_body()["error"] == "m: cannot start ...; ... and node2 (...) do not answer; ..."
    inside = error.body(for_admin=True)["error"]
    assert isinstance(inside, dict)
    assert inside["message"] == message
    assert inside["state"]["pid"] == 4711
    assert inside["diagnosis"]["evidence"]


def test_error_of_a_client_names_what_it_sent() -> None:
    error = RouterError(404, "unknown_model", "model 'hf.co/a/b:1.2.3.4' not found")
    assert "hf.co/a/b:1.2.3.4" in json.dumps(error.body())
