"""JSON that clients and servers send in odd shapes."""

from typing import Any

import pytest
from harness.router.errors import RouterError
from harness.router.http.json_body import dump, model_of, parse_answer, parse_object


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


@pytest.mark.parametrize("body", [{"model": "m"}, {"name": "m"}, {"model": "", "name": "m"}])
def test_model_is_named_by_model_or_as_in_older_ollama_by_name(body: dict[str, Any]) -> None:
    assert model_of(body) == "m"


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
