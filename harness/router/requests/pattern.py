"""Patterns of JSON schemas, rewritten for llama.cpp's converter (``common/json-schema-to-grammar.cpp``).

Releases before 10566 die of ``(?:``, ``(?=``, ``^+a$`` and others, read ``\\d`` as a letter and need ``^``
and ``$``; later ones drop a pattern that they cannot convert, and say so in their log alone. What is
written here is plain enough for all: groups, classes of code points, letters and counts. A pattern of JSON
Schema is ECMA-262's (https://json-schema.org/draft/2020-12/json-schema-validation#section-6.3.3); the
rewritten one matches the text inside the quotes of a JSON string, so a quote is written ``\\"``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.router.requests.expression import (
    SIGNS,
    Chars,
    Choice,
    Node,
    Repeat,
    Sequence,
    TooCostlyError,
    check_repeats,
    positions,
    read_count,
)

LONGEST_PATTERN = 2000
"""Characters."""
DEEPEST_PATTERN = 20
"""Groups in groups."""
MOST_POSITIONS = 1000
"""Of a pattern with its counts written out; llama.cpp itself refuses 2,000 repetitions since 10566."""

_LAST = 0x10FFFF
_DIGIT = ((48, 57),)
_WORD = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE = ((9, 13), (32, 32), (0xA0, 0xA0), (0x2028, 0x2029), (0xFEFF, 0xFEFF))
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_IN_STRINGS = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x7E), (0x80, _LAST))
"""What stands in a JSON string as it is."""
_ESCAPED = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: "\\x22", 92: "\\x5C"}
"""What JSON writes after a backslash."""
_COUNT = re.compile(r"\{(\d{1,9})(?:(,)(\d{0,9}))?\}")
_HEX = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}")
_GROUP = re.compile(r"\?:|\?P?<[A-Za-z_$][\w$]*>")
_LOOK = re.compile(r"\?<?[=!]")


class UnsupportedPatternError(ValueError):
    """A pattern that no grammar can express."""


class InvalidPatternError(ValueError):
    """A text that is no regular expression, or one beyond the bounds; the message is for the client."""


@dataclass(frozen=True)
class Anchor:
    """``^`` or ``$``."""

    start: bool


@dataclass(frozen=True)
class Rewritten:
    """A pattern that every release can convert."""

    text: str
    exact: bool
    """Whether it matches the same texts; else it matches more: an assertion or a high count is gone."""


def rewrite(pattern: str) -> Rewritten:
    """The pattern in the syntax that llama.cpp converts.

    Raises:
        InvalidPatternError: it is no regular expression, too long, too deep or too large.
        UnsupportedPatternError: it needs what a grammar does not have, such as a back reference.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise InvalidPatternError(f"at most {LONGEST_PATTERN} characters are allowed")
    parser = _Parser(pattern)
    tree = parser.whole()
    text = "^(" + _write(tree) + ")$"
    return Rewritten(text, parser.exact)


class _Parser:
    """ECMA-262's patterns without flags, with the leniency of its annex B for braces and brackets."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.exact = True

    def whole(self) -> Node:
        branches = [self._anchored(branch) for branch in self._branches(0)]
        if self._at < len(self._text):
            raise InvalidPatternError("it has a ')' too many")
        tree = _choice(branches)
        try:
            check_repeats(tree)
        except TooCostlyError as error:
            raise UnsupportedPatternError(str(error)) from None
        if positions(tree) > MOST_POSITIONS:
            raise InvalidPatternError(
                f"it has more than {MOST_POSITIONS} positions with its counts written out"
            )
        return tree

    def _anchored(self, branch: list[Node | Anchor]) -> Node:
        """One alternative of the pattern; where it has no anchor, any text may stand before or after."""
        starts = bool(branch) and branch[0] == Anchor(True)
        ends = bool(branch) and branch[-1] == Anchor(False)
        branch = branch[int(starts) : len(branch) - int(ends)]
        rest = Repeat(Chars(((0, _LAST),)), 0, None)
        parts = self._without_anchors(branch)
        return Sequence((*(() if starts else (rest,)), *parts, *(() if ends else (rest,))))

    def _without_anchors(self, branch: list[Node | Anchor]) -> tuple[Node, ...]:
        parts = tuple(part for part in branch if not isinstance(part, Anchor))
        if len(parts) < len(branch):
            self.exact = False
        return parts

    def _branches(self, depth: int) -> list[list[Node | Anchor]]:
        if depth > DEEPEST_PATTERN:
            raise InvalidPatternError(f"at most {DEEPEST_PATTERN} groups in groups are allowed")
        branches: list[list[Node | Anchor]] = [[]]
        while self._at < len(self._text) and self._text[self._at] != ")":
            if self._take("|"):
                branches.append([])
                continue
            if (part := self._part(depth)) is not None:
                branches[-1].append(part)
        return branches

    def _part(self, depth: int) -> Node | Anchor | None:
        char = self._text[self._at]
        if char in SIGNS or _COUNT.match(self._text, self._at):
            raise InvalidPatternError(f"nothing to repeat at {self._at}")
        self._at += 1
        if char in "^$":
            return Anchor(char == "^")
        atom: Node | None
        if char == "(":
            atom = self._group(depth)
        elif char == "[":
            atom = self._class()
        elif char == "\\":
            ranges = self._escape(in_class=False)
            atom = Chars(ranges) if ranges is not None else None
        else:
            atom = Chars(((0, 9), (11, 12), (14, _LAST))) if char == "." else _char(char)
        return self._repeated(atom)

    def _group(self, depth: int) -> Node | None:
        """A group; None for an assertion, which is left out."""
        look = _LOOK.match(self._text, self._at)
        plain = None if look else _GROUP.match(self._text, self._at)
        if look or plain:
            self._at = (look or plain).end()  # type: ignore[union-attr]
        elif self._text[self._at : self._at + 1] == "?":
            raise UnsupportedPatternError("a group of this kind is not supported")
        exact = self.exact
        branches = self._branches(depth + 1)
        if not self._take(")"):
            raise InvalidPatternError("a ')' is missing")
        if look:
            self.exact = False
            return None
        self.exact = exact and self.exact
        return _choice([Sequence(self._without_anchors(branch)) for branch in branches])

    def _repeated(self, atom: Node | None) -> Node | None:
        if self._at >= len(self._text):
            return atom
        char = self._text[self._at]
        if char in SIGNS:
            least, most = SIGNS[char]
            self._at += 1
        elif count := _COUNT.match(self._text, self._at):
            least, most = read_count(count)
            if most is not None and most < least:
                raise InvalidPatternError(f"the count {count[0]} is empty")
            self._at = count.end()
        else:
            return atom
        self._take("?")  # a lazy count: the same texts
        if self._at < len(self._text) and self._text[self._at] in SIGNS:
            raise InvalidPatternError(f"nothing to repeat at {self._at}")
        if atom is None:
            return None
        if most is not None and most > least and most * positions(atom) > MOST_POSITIONS:
            self.exact, most = False, None
        return Sequence(()) if most == 0 else Repeat(atom, least, most)

    def _class(self) -> Node:
        negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        while not self._take("]"):
            first = self._class_atom()
            if self._text[self._at : self._at + 1] == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                last = self._class_atom()
                if _one(first) and _one(last):
                    if last[0][0] < first[0][0]:
                        raise InvalidPatternError("a range of a class is upside down")
                    ranges.append((first[0][0], last[0][0]))
                    continue
                ranges += [(45, 45), *last]
            ranges += first
        merged = _merge(ranges)
        chars = _complement(merged) if negated else merged
        if not chars:
            raise UnsupportedPatternError("a class that matches nothing")
        return Chars(chars)

    def _class_atom(self) -> tuple[tuple[int, int], ...]:
        if self._at >= len(self._text):
            raise InvalidPatternError("a ']' is missing")
        char = self._text[self._at]
        self._at += 1
        if char != "\\":
            return ((ord(char), ord(char)),)
        ranges = self._escape(in_class=True)
        if ranges is None:
            raise InvalidPatternError("an assertion in a class")
        return ranges

    def _escape(self, *, in_class: bool) -> tuple[tuple[int, int], ...] | None:
        """What an escape stands for; None for an assertion."""
        if self._at >= len(self._text):
            raise InvalidPatternError("it ends in a backslash")
        if number := _HEX.match(self._text, self._at):
            self._at = number.end()
            point = int(number[1] or number[2] or number[3], 16)
            if point > _LAST:
                raise InvalidPatternError("a code point beyond Unicode")
            return ((point, point),)
        char = self._text[self._at]
        self._at += 1
        if char.lower() in _CLASSES:
            ranges = _CLASSES[char.lower()]
            return ranges if char.islower() else _complement(ranges)
        if char in _CONTROLS:
            return ((_CONTROLS[char],) * 2,)
        if char in "bB":
            if in_class:
                return ((8, 8),)
            self.exact = False
            return None
        if char.isascii() and char.isalnum():
            raise UnsupportedPatternError(f"\\{char} is not supported")
        return ((ord(char), ord(char)),)

    def _take(self, char: str) -> bool:
        found = self._text[self._at : self._at + 1] == char
        self._at += found
        return found


def _char(char: str) -> Chars:
    return Chars(((ord(char), ord(char)),))


def _one(ranges: tuple[tuple[int, int], ...]) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]


def _choice(branches: list[Node]) -> Node:
    return branches[0] if len(branches) == 1 else Choice(tuple(branches))


def _merge(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def _complement(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    out, at = [], 0
    for first, last in ranges:
        if first > at:
            out.append((at, first - 1))
        at = last + 1
    return (*out, (at, _LAST)) if at <= _LAST else tuple(out)


def _write(node: Node) -> str:
    match node:
        case Chars(ranges):
            return _write_chars(ranges)
        case Sequence(parts):
            return "".join(
                f"({_write(part)})" if isinstance(part, Choice) else _write(part) for part in parts
            )
        case Choice(parts):
            return "|".join(map(_write, parts))
        case Repeat(part, least, most):
            inner = _write(part)
            if not (isinstance(part, Chars) and inner.startswith("[")):
                inner = f"({inner})"
            count = f"{{{least},{'' if most is None else most}}}"
            return inner + next((sign for sign, counts in SIGNS.items() if counts == (least, most)), count)
        case _:
            raise TypeError(node)


def _write_chars(ranges: tuple[tuple[int, int], ...]) -> str:
    """Characters as they stand in a JSON string: as they are, or after a backslash."""
    plain = [
        (max(first, low), min(last, high))
        for first, last in ranges
        for low, high in _IN_STRINGS
        if max(first, low) <= min(last, high)
    ]
    forms = ["[" + "".join(map(_write_range, plain)) + "]"] if plain else []
    if escaped := [form for point, form in _ESCAPED.items() if _contains(ranges, point)]:
        forms.append(f"[\\x5C][{''.join(escaped)}]")
    if not forms:
        raise UnsupportedPatternError("a character that JSON writes as a number")
    return forms[0] if len(forms) == 1 and plain else f"({'|'.join(forms)})"


def _contains(ranges: tuple[tuple[int, int], ...], point: int) -> bool:
    return any(first <= point <= last for first, last in ranges)


def _write_range(ends: tuple[int, int]) -> str:
    first, last = ends
    return _write_point(first) if first == last else f"{_write_point(first)}-{_write_point(last)}"


def _write_point(point: int) -> str:
    if point < 0x80:
        return chr(point) if chr(point).isalnum() else f"\\x{point:02X}"
    return f"\\u{point:04X}" if point <= 0xFFFF else f"\\U{point:08X}"
