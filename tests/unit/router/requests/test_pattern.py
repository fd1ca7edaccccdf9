"""Patterns of JSON schemas, rewritten for llama.cpp's converter."""

import json
import re

import pytest
from harness.router.requests.pattern import InvalidPatternError, UnsupportedPatternError, rewrite
from hypothesis import given
from hypothesis import strategies as st

EMAIL = r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
"""zod 4's ``z.email()``."""
DATETIME = (
    r"^(?:(?:\d\d[2468][048]|\d\d[13579][26]|\d\d0[48]|[02468][048]00|[13579][26]00)-02-29|"
    r"\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|"
    r"(?:02)-(?:0[1-9]|1\d|2[0-8])))T(?:(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?(?:Z))$"
)
"""zod 4's ``z.iso.datetime()``."""

atoms = st.sampled_from(
    ["a", "b", "ab", ".", r"\d", r"\w", r"\s", r"\.", r"\"", r"\\", '"', "[ab]", "[^a]", '[!-~]', r"[\d-]",
     "é", "[à-ü]"]
)  # fmt: skip
patterns = st.recursive(
    atoms,
    lambda inner: (
        st.builds("{}{}".format, inner, inner)
        | st.builds("(?:{}|{})".format, inner, inner)
        | st.builds("({})".format, inner)
        | st.builds(
            "(?:{}){}".format, inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?", "{1,}?"])
        )
    ),
    max_leaves=6,
)
texts = st.text('abc."\\ é1-~!\n\t/{}[]', max_size=8)
SAFE = re.compile(
    r"(?:[()|*+?]|\{\d+,\d*\}|\[(?:[0-9A-Za-z-]|\\x[0-9A-F]{2}|\\u[0-9A-F]{4}|\\U[0-9A-F]{8})+\])*"
)
"""What every release converts: groups, choices, counts, and classes without a sign of their own."""


def in_json(text: str) -> str:
    """A text as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


@given(patterns, texts, st.booleans(), st.booleans())
def test_rewritten_pattern_means_the_same_in_a_json_string(
    pattern: str, text: str, starts: bool, ends: bool
) -> None:
    pattern = ("^" if starts else "") + pattern + ("$" if ends else "")
    try:
        rewritten = rewrite(pattern)
    except UnsupportedPatternError:
        return
    assert rewritten.exact
    wanted = re.search(pattern.removesuffix("$") + (r"\Z" if ends else ""), text, re.ASCII)
    assert bool(re.fullmatch(rewritten.text, in_json(text))) is bool(wanted)


@given(patterns)
def test_rewritten_pattern_is_plain(pattern: str) -> None:
    try:
        rewritten = rewrite(pattern)
    except UnsupportedPatternError:
        return
    assert (rewritten.text[0], rewritten.text[-1]) == ("^", "$")
    assert SAFE.fullmatch(rewritten.text[1:-1])


@given(st.text("(?:=!<>P^$*+{}[]|\\dbpk1,a-.) ", max_size=14))
def test_any_text_is_rewritten_or_refused(pattern: str) -> None:
    try:
        assert SAFE.fullmatch(rewrite(pattern).text[1:-1])
    except (InvalidPatternError, UnsupportedPatternError):
        return


def test_patterns_of_zod_are_kept() -> None:
    email, moment = rewrite(EMAIL), rewrite(DATETIME)
    assert not email.exact, "its assertions are left out"
    assert re.fullmatch(email.text, "ada.l@example.org")
    assert not re.fullmatch(email.text, "ada at example.org")
    assert moment.exact
    assert re.fullmatch(moment.text, "2024-02-29T10:00:00.5Z")
    assert not re.fullmatch(moment.text, "2023-02-29T10:00:00Z")


@pytest.mark.parametrize("pattern", ["^(?=x)y$", "^(?!x)y$", "^(?<=x)y$", r"^\by$", "^a^y$"])
def test_assertion_is_left_out_and_the_rest_stays(pattern: str) -> None:
    rewritten = rewrite(pattern)
    assert not rewritten.exact
    assert re.fullmatch(rewritten.text, "ay" if "a" in pattern else "y")
    assert not re.fullmatch(rewritten.text, "z")


@pytest.mark.parametrize("pattern", ["^(?:x)y$", "^(?P<n>x)y$", "^(?<n>x)y$", "^x(?:y)?$"])
def test_group_of_any_kind_is_a_group(pattern: str) -> None:
    assert rewrite(pattern).exact
    assert re.fullmatch(rewrite(pattern).text, "xy")


@pytest.mark.parametrize("pattern", ["^((a*)*)*$", r"(a)\1", r"\p{L}", "(?i:a)", "^[^\\s\\S]$", "(?P=n)"])
def test_what_no_grammar_can_say_is_not_supported(pattern: str) -> None:
    with pytest.raises(UnsupportedPatternError):
        rewrite(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "^+a$", "^*$", "^{2}$", "(", ")", "[a", "a**", "a{3,1}", "[z-a]", "\\", "x" * 2001,
        "(" * 30 + ")" * 30, "^((a{20}){20}){20}$", "^a{5000}$",
    ],
)  # fmt: skip
def test_what_is_no_pattern_or_too_large_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidPatternError):
        rewrite(pattern)


def test_high_count_is_opened() -> None:
    rewritten = rewrite("^[a-z]{1,5000}$")
    assert not rewritten.exact
    assert rewritten.text == "^([a-z]+)$"
