"""Errors of model servers: which are the client's, and how each API shows one."""

import json
from typing import Any

import pytest
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
