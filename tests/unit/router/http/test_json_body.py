"""What arrives at the router in odd shapes, and how a stream is cut up by the network."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from harness.router.errors import RouterError
from harness.router.http.json_body import dump, model_of, parse_answer, parse_object
from harness.router.proxy.errors import clients_mistake, refusal
from harness.router.proxy.sse import Events
from harness.router.proxy.upstream import whole_lines


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(RouterError) as refused:
        parse_object(body)
    assert refused.value.status == 400


@pytest.mark.parametrize("model", [None, "", 7, ["x"], "\ud800"])
def test_model_that_is_no_name_is_refused(model: Any) -> None:
    with pytest.raises(RouterError) as refused:
        model_of({"model": model})
    assert refused.value.status == 400


def test_half_a_surrogate_pair_becomes_a_replacement_character() -> None:
    assert dump({"a": "x\ud83dy"}) == '{"a": "x\ufffdy"}'.encode()
    assert dump({"a": "\U0001f600"}) == '{"a": "\U0001f600"}'.encode()


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"", b"[" * 100_000])
def test_answer_that_is_no_json_object_is_the_servers_failure(body: bytes) -> None:
    with pytest.raises(RouterError) as failed:
        parse_answer(body)
    assert failed.value.status == 502


def test_events_end_at_an_empty_line_in_either_style() -> None:
    events = Events()
    assert events.feed(b': ping\n\ndata: {"a"') == []
    assert events.feed(b": 1}\r\n\r\nevent: x\ndata:2\ndata: 3\n\ndata: last") == [b'{"a": 1}', b"2\n3"]
    assert events.end() == [b"last"]


def test_event_without_end_is_not_kept() -> None:
    events = Events()
    for _ in range(16):
        events.feed(b"x" * 1024 * 1024)
    with pytest.raises(RouterError) as failed:
        events.feed(b"x")
    assert failed.value.status == 502


async def test_line_that_never_ends_is_not_begun() -> None:
    async def broken() -> AsyncIterator[bytes]:
        for piece in (b"data: 1\n", b"\ndata: ", b"2\n\nda", b"ta: 3"):
            yield piece
        raise RouterError(502, "unknown", "gone")

    pieces = whole_lines(broken())
    seen = [await anext(pieces) for _ in range(3)]
    with pytest.raises(RouterError):
        await anext(pieces)
    assert seen == [b"data: 1\n", b"\n", b"data: 2\n\n"]


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
    refused = clients_mistake(500, error(message), model="m")
    assert refused is not None
    assert (refused.status, refused.error_class) == (400, error_class)


def test_failure_of_a_server_stays_one() -> None:
    assert clients_mistake(500, error("Compute error"), model="m") is None
    assert refusal(500, error("Compute error"), model="m").status == 500
    assert clients_mistake(400, error("'messages' is required"), model="m") is None
    assert refusal(429, {"error": "slow down"}, model="m").message == "slow down"


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
