"""Sizes, last lines and validation errors in words."""

import pytest
from harness.common.text import first_error, gib, last_line, parse_size, printable
from pydantic import BaseModel, ValidationError


class _Inner(BaseModel):
    port: int


class _Document(BaseModel):
    inner: _Inner


def test_size_in_gib() -> None:
    assert gib(15.5 * 2**30) == "15.5 GiB"
    assert gib(2**29, digits=2) == "0.50 GiB"


@pytest.mark.parametrize(
    ("output", "expected"),
    [("a\nb\n\n", "b"), (b"caf\xe9\n", "caf�"), ("", "no output"), (" \n", "no output")],
)
def test_last_line_with_text(output: str | bytes, expected: str) -> None:
    assert last_line(output) == expected


def test_text_of_a_node_cannot_control_a_terminal() -> None:
    assert printable("a\tb\n\x1b[2J\x9b31m\u202e\r") == "a\tb\n\ufffd[2J\ufffd31m\ufffd\ufffd"
    assert last_line(b"first\n\x1b]0;title\x07\n") == "\ufffd]0;title\ufffd"


def test_first_error_names_the_key() -> None:
    with pytest.raises(ValidationError) as caught:
        _Document.model_validate({"inner": {"port": "x"}})
    assert first_error(caught.value).startswith("inner.port: Input should be a valid integer")
    with pytest.raises(ValidationError) as caught:
        _Document.model_validate_json("{")
    assert first_error(caught.value).startswith("file: Invalid JSON")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * 2**20),
        ("5.6G", int(5.6 * 2**30)),
        ("1GiB", 2**30),
        ("0", 0),
        (4096, 4096),
        ("2 g", 2**31),
    ],
)
def test_sizes_are_binary(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1G", "1X"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)
