"""Numbers as people read them."""

import pytest
from harness.report import format as numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0 B"),
        (1536, "1.50 KiB"),
        (73 * 2**20, "73.0 MiB"),
        (1023 * 2**20, "1,023 MiB"),
        (7_366_009_920, "6.86 GiB"),
        (128 * 2**30, "128 GiB"),
    ],
)
def test_sizes(value: float | None, text: str) -> None:
    assert numbers.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0 s"),
        (0.0123, "12.3 ms"),
        (1.5, "1.50 s"),
        (34.27, "34.3 s"),
        (148, "2 min 28 s"),
        (7400, "2 h 03 min"),
    ],
)
def test_durations(value: float | None, text: str) -> None:
    assert numbers.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.031, "+3.1 %"), (-0.5, "-50.0 %"), (0.00001, "0.0 %"), (None, "–")]
)
def test_differences(value: float | None, text: str) -> None:
    assert numbers.percent(value) == text


def test_text_from_elsewhere_loses_its_control_characters() -> None:
    assert numbers.printable("a\x1b[31m\x00b\nc") == "a�[31m�b\nc"
