"""Each kind of line is found by its words, and numbers decide only where the scanner knows it."""

import json
import re
from itertools import permutations
from pathlib import Path

import pytest
from harness.diagnosis.patterns import Kind
from harness.diagnosis.scanner import DECISIVE_NUMBERS, KINDS, meaning, scan
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

PATTERNS = [(kind, pattern) for kind in KINDS for pattern in kind.patterns]
WITHOUT_NUMBERS = str.maketrans("123456789", "000000000")
ASCII = st.characters(codec="ascii")
CASES = json.loads((Path(__file__).parents[2] / "data" / "logs" / "wordings.json").read_text())
WORDINGS = [line for case in CASES for line in case["lines"]]


def test_no_word_begins_another() -> None:
    words = {word for kind in KINDS for word in kind.words}
    assert [pair for pair in permutations(words, 2) if pair[1].startswith(pair[0])] == []


@pytest.mark.parametrize(("kind", "pattern"), PATTERNS, ids=lambda value: getattr(value, "pattern", ""))
def test_every_matching_line_has_a_word_and_its_numbers_do_not_decide(
    kind: Kind, pattern: re.Pattern[str]
) -> None:
    @settings(
        deadline=None,
        max_examples=3,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(line=st.from_regex(pattern, alphabet=ASCII))
    def check(line: str) -> None:
        assert any(word in line.lower() for word in kind.words), line
        same = pattern.search(line.translate(WITHOUT_NUMBERS))
        assert same or DECISIVE_NUMBERS.search(line.encode()), line

    check()


def with_other_numbers(line: str, digits: str) -> str:
    return re.sub(r"\d", lambda match: digits[match.start() % len(digits)], line)


VARIED_WORDINGS = st.builds(with_other_numbers, st.sampled_from(WORDINGS), st.text("0123456789", min_size=1))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.builds(with_other_numbers, st.sampled_from(WORDINGS), st.text("0123456789", min_size=1)),
        max_size=40,
    )
)
def test_lines_of_a_log_mean_what_each_of_them_means_alone(lines: list[str]) -> None:
    matches = scan({"x.log": lines})
    together = {(hit.number, kind) for kind, hits in matches.hits.items() for hit in hits}
    alone = {(at, kind.name) for at, line in enumerate(lines, 1) for kind, _, _ in meaning(line)}
    assert together == alone
