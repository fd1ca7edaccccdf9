"""Grammars in llama.cpp's own notation (GBNF, ``grammars/README.md``), parsed to bound their work.

Checked against ``src/llama-grammar.cpp`` of 6751 and of 11549. llama.cpp writes a grammar that it cannot
parse into its log as it is, where a line of it could pass for a line of llama.cpp's own: what it does not
parse is refused here. A grammar with two readings of one text can
be slow within these bounds: the engine follows all of them.
"""

from __future__ import annotations

import re
from typing import Any

from harness.router.requests.bounds import BoundError
from harness.router.requests.expression import (
    SIGNS,
    Chars,
    Choice,
    Node,
    Repeat,
    Rule,
    Sequence,
    TooCostlyError,
    check_repeats,
    nullable,
    positions,
    read_count,
)

LONGEST_GRAMMAR = 32 * 1024
"""Characters."""
DEEPEST_GRAMMAR = 32
"""Groups in groups."""
MOST_RULES = 500
DEEPEST_RULES = 100
"""Rules below each other."""
HIGHEST_COUNT = 1000
MOST_POSITIONS = 20_000
"""Of a grammar with its counts written out, also those of the rules that it refers to."""

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_INLINE_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_CLASS = re.compile(r"\[\^?(?:[^\]\\]|\\.)*\]", re.DOTALL)
_ESCAPE = re.compile(r"\\.(?:(?<=x)[^\\]{0,2}|(?<=u)[^\\]{0,4}|(?<=U)[^\\]{0,8})?", re.DOTALL)
_KNOWN_ESCAPE = re.compile(r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[tnr\\"\[\]])')
_COUNT = re.compile(r"\{[ \t]*(\d{1,9})[ \t]*(?:(,)[ \t]*(\d{0,9})[ \t]*)?\}")
_ANY = Chars(((0, 0x10FFFF),))


def check_grammar(grammar: Any) -> None:
    """Check a grammar's bounds.

    Raises:
        BoundError: it cannot be read, or is beyond a bound.
    """
    if not isinstance(grammar, str):
        raise BoundError("grammar", "a text is expected")
    if len(grammar) > LONGEST_GRAMMAR:
        raise BoundError("grammar", f"a text of at most {LONGEST_GRAMMAR} characters is expected")
    if not grammar.strip():
        return
    try:
        _check_rules(_Parser(grammar).rules())
    except TooCostlyError as error:
        raise BoundError("grammar", str(error)) from None


def _check_rules(rules: dict[str, Node]) -> None:
    for name in set().union(*map(_references, rules.values())):
        if name not in rules:
            raise TooCostlyError(f"the rule {name[:40]} is not defined")
    may_be_empty = _nullable_rules(rules)
    known: dict[str, int] = {}
    for name, node in rules.items():
        check_repeats(node, may_be_empty)
        if _cost(name, rules, known, []) > MOST_POSITIONS:
            raise TooCostlyError(
                f"rule {name[:40]}: more than {MOST_POSITIONS} positions with counts written out"
            )


def _nullable_rules(rules: dict[str, Node]) -> dict[str, bool]:
    known = dict.fromkeys(rules, False)
    changed = True
    while changed:
        changed = False
        for name, node in reversed(rules.items()):
            if not known[name] and nullable(node, known):
                known[name] = changed = True
    return known


def _cost(name: str, rules: dict[str, Node], known: dict[str, int], above: list[str]) -> int:
    """Positions of a rule and of those below it; one that refers to itself counts once."""
    if name in known:
        return known[name]
    if name in above:
        return 1
    if len(above) == DEEPEST_RULES:
        raise TooCostlyError(f"at most {DEEPEST_RULES} rules below each other are allowed")
    node = rules[name]
    below = {part: _cost(part, rules, known, [*above, name]) for part in _references(node)}
    known[name] = min(positions(node, below), MOST_POSITIONS + 1)
    return known[name]


def _references(node: Node) -> set[str]:
    match node:
        case Rule(name):
            return {name}
        case Sequence(parts) | Choice(parts):
            return set().union(*map(_references, parts))
        case Repeat(part, _, _):
            return _references(part)
        case _:
            return set()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def rules(self) -> dict[str, Node]:
        rules: dict[str, Node] = {}
        self._skip(_SPACE)
        while self._at < len(self._text):
            name = self._match(_NAME, "the name of a rule")
            self._skip(_INLINE_SPACE)
            if not self._text.startswith("::=", self._at):
                raise self._error("::=")
            self._at += 3
            self._skip(_SPACE)
            rules[name] = self._alternates(0)
            if len(rules) > MOST_RULES:
                raise TooCostlyError(f"at most {MOST_RULES} rules are allowed")
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                raise self._error("a new line")
            self._skip(_SPACE)
        return rules

    def _alternates(self, depth: int) -> Node:
        if depth > DEEPEST_GRAMMAR:
            raise TooCostlyError(f"at most {DEEPEST_GRAMMAR} groups in groups are allowed")
        branches = [self._sequence(depth)]
        while self._text.startswith("|", self._at):
            self._at += 1
            self._skip(_SPACE)
            branches.append(self._sequence(depth))
        return branches[0] if len(branches) == 1 else Choice(tuple(branches))

    def _sequence(self, depth: int) -> Node:
        space = _SPACE if depth else _INLINE_SPACE
        parts: list[Node] = []
        while (part := self._part(depth)) is not None:
            self._skip(space)
            while (count := self._count()) is not None:
                if part == Sequence(()):
                    raise self._error("something to repeat")
                part = Repeat(part, *count)
                self._skip(space)
            parts.append(part)
        return Sequence(tuple(parts))

    def _part(self, depth: int) -> Node | None:
        char = self._text[self._at : self._at + 1]
        if char == '"':
            literal = self._match(_LITERAL, "the end of a text")
            self._check_escapes(literal)
            return Sequence((_ANY,) * (len(literal) - 2))
        if char == "[":
            self._check_escapes(self._match(_CLASS, "the end of a class"))
            return _ANY
        if char == ".":
            self._at += 1
            return _ANY
        if char == "(":
            self._at += 1
            self._skip(_SPACE)
            inner = self._alternates(depth + 1)
            if not self._text.startswith(")", self._at):
                raise self._error("')'")
            self._at += 1
            return inner
        if _NAME.match(char):
            return Rule(self._match(_NAME, "a name"))
        return None

    def _count(self) -> tuple[int, int | None] | None:
        char = self._text[self._at : self._at + 1]
        if char in SIGNS:
            self._at += 1
            return SIGNS[char]
        if char != "{":
            return None
        found = _COUNT.match(self._text, self._at)
        if not found:
            raise self._error("a count")
        self._at = found.end()
        least, most = read_count(found)
        if max(least, most or 0) > HIGHEST_COUNT or (most is not None and most < least):
            raise TooCostlyError(f"the count {found[0]}: at most {HIGHEST_COUNT} is allowed")
        return least, most

    def _check_escapes(self, text: str) -> None:
        for escape in _ESCAPE.findall(text):
            if not _KNOWN_ESCAPE.match(escape):
                raise TooCostlyError(f"the escape {escape[:2]!a} is not known")

    def _match(self, what: re.Pattern[str], expected: str) -> str:
        found = what.match(self._text, self._at)
        if not found:
            raise self._error(expected)
        self._at = found.end()
        return found[0]

    def _skip(self, space: re.Pattern[str]) -> None:
        if found := space.match(self._text, self._at):
            self._at = found.end()

    def _error(self, expected: str) -> TooCostlyError:
        return TooCostlyError(f"{expected} is expected at character {self._at}")
