"""Grammars of requests: bounded in size, depth and counts, and none that may repeat the empty text."""

import pytest
from harness.router.requests.bounds import BoundError
from harness.router.requests.grammar import check_grammar
from hypothesis import given
from hypothesis import strategies as st

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"""
"""As in llama.cpp's ``grammars/json.gbnf``."""


@pytest.mark.parametrize(
    "grammar", [JSON, 'root ::= "yes" | "no"', "", "  \n", 'root ::= [a-z]{1,1000} "."?']
)
def test_ordinary_grammar_passes(grammar: str) -> None:
    check_grammar(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= ((("a")*)*)*',
        'root ::= a*\na ::= "x"?',
        "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000,
        "root ::= " + "(" * 40 + '"a"' + ")" * 40,
        'root ::= (("a"{0,100}){0,100}){0,100}',
        'root ::= b{1,1000}\nb ::= a{1,1000}\na ::= "x"{1,1000}',
        'root ::= "a"{1000000000}',
        "\n".join(f"r{n} ::= r{n + 1}" for n in range(2000)),
        "\n".join(f"r{n} ::= r{n + 1}" for n in range(400)),
        'root ::= "a',
        "root ::= [a",
        'root "a"',
        'root ::= ("a"',
        "x" * 40_000,
        'root ::= undefined "\nrecv failed (bytes_recv=0, size_to_recv=8)\n"',
        r'root ::= "\q"',
        r'root ::= "\x0g"',
        r"root ::= [\-a]",
        'root ::= ""?',
        7,
    ],
    ids=range(20),
)
def test_grammar_beyond_a_bound_is_refused(grammar: object) -> None:
    with pytest.raises(BoundError, match="grammar: "):
        check_grammar(grammar)


@given(st.text('rot:=|()[]{}*+?"a\\ \n#,12', max_size=30))
def test_any_text_passes_or_is_refused(grammar: str) -> None:
    try:
        check_grammar("root ::= " + grammar)
    except BoundError:
        return
