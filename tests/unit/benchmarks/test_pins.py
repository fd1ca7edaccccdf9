"""The table of releases measured in turns: ratios within a round, and a release that hung beside them."""

import json

import pytest

from pins_table import Figures, Pins, markdown, text

HUNG = "round 2: hung: /completion: no end after 300 s"
PINS = Pins(
    {
        6751: [Figures(10, 100, 10), Figures(20, 50, 5), Figures(10, 100, 10)],
        10566: [Figures(5, 100, 10)],
        11549: [Figures(5, 110, 20), Figures(10, 55, 10), Figures(5, 110, 20)],
    },
    {10566: HUNG},
)


def test_ratios_are_taken_within_a_round() -> None:
    assert PINS.row(11549, "load_s").ratio.values == (0.5, 0.5, 0.5)
    assert PINS.row(11549, "prompt_tokens_per_s").ratio.median == pytest.approx(1.1)


def test_release_that_hung_stands_in_the_table_without_figures() -> None:
    lines = markdown(PINS).splitlines()
    assert [line.count("|") for line in lines] == [8] * 5
    assert lines[2] == "| 6751 | 10.00 | 1 | 100.00 | 1 | 10.00 | 1 |"
    assert lines[3] == f"| 10566 | {HUNG} | | | | | |"
    assert lines[4] == (
        "| 11549 | 5.00 | 0.500 [0.500 .. 0.500] | 110.00 | 1.100 [1.100 .. 1.100] "
        "| 20.00 | 2.000 [2.000 .. 2.000] |"
    )
    assert lines[0].startswith("| llama.cpp | load, s | ratio to 6751 [95%], below 1 is faster | prompt, ")
    assert "10566" in text("a title", PINS)


def test_first_release_that_stands_is_the_base() -> None:
    pins = Pins({1: [], 2: [Figures(1, 2, 3)]}, {1: "round 1: llama-server ended by SIGABRT"})
    assert pins.base == 2
    assert markdown(pins).splitlines()[-1] == "| 2 | 1.00 | 1 | 2.00 | 1 | 3.00 | 1 |"


def test_table_of_nothing_says_what_became_of_each() -> None:
    pins = Pins({1: [], 2: []}, {1: "round 1: hung", 2: "round 1: hung too"})
    assert pins.base is None
    assert "hung too" in markdown(pins)
    assert "hung too" in text("a title", pins)


def test_file_holds_every_value() -> None:
    data = json.loads(json.dumps(PINS.data()))
    assert data["rounds"]["10566"] == [{"load_s": 5, "prompt_tokens_per_s": 100, "decode_tokens_per_s": 10}]
    assert data["failed"] == {"10566": HUNG}
    assert data["ratios"]["11549"]["load_s"] == {"median": 0.5, "low": 0.5, "high": 0.5}
    assert list(data["ratios"]) == ["6751", "11549"]
