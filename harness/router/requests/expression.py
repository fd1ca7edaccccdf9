"""Regular expressions and grammars as trees, and the cost of a tree for the engine that runs it.

llama.cpp's engine (``src/llama-grammar.cpp``) keeps every position that may come next, and repeats a part
by writing it out: ``x{0,100}`` is a hundred rules. So the size of a tree once all its counts are written
out bounds its work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Chars:
    """One character out of ranges of code points, both ends included."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Sequence:
    """Parts, one after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """One of several parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """A part ``least`` to ``most`` times."""

    part: Node
    least: int
    most: int | None
    """None: without end."""


@dataclass(frozen=True)
class Rule:
    """A reference to a rule of a grammar."""

    name: str


Node = Chars | Sequence | Choice | Repeat | Rule

SIGNS: Mapping[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
"""``least`` and ``most`` of each sign of repetition."""


class TooCostlyError(ValueError):
    """The engine cannot run the tree in reasonable time; the message names the part."""


def read_count(count: re.Match[str]) -> tuple[int, int | None]:
    """``least`` and ``most`` of a match of ``{3}``, ``{3,}`` or ``{3,5}``; its groups: 3, the comma, 5."""
    least = int(count[1])
    if not count[2]:
        return least, least
    return least, int(count[3]) if count[3] else None


def nullable(node: Node, rules: Mapping[str, bool] = {}) -> bool:
    """Whether the empty text matches; ``rules`` has the answer for each rule of the grammar."""
    match node:
        case Chars():
            return False
        case Sequence(parts):
            return all(nullable(part, rules) for part in parts)
        case Choice(parts):
            return any(nullable(part, rules) for part in parts)
        case Repeat(part, least, _):
            return least == 0 or nullable(part, rules)
        case Rule(name):
            return rules.get(name, False)


def positions(node: Node, rules: Mapping[str, int] = {}) -> int:
    """Positions of a tree with its counts written out; ``rules`` has those of each rule of the grammar."""
    match node:
        case Chars():
            return 1
        case Sequence(parts) | Choice(parts):
            return 1 + sum(positions(part, rules) for part in parts)
        case Repeat(part, least, most):
            return max(1, least, most or 1) * positions(part, rules)
        case Rule(name):
            return rules.get(name, 1)


def check_repeats(node: Node, rules: Mapping[str, bool] = {}) -> None:
    """Refuse the repetition of what may be empty: releases before 10566 never end it (CVE-2026-2069).

    Raises:
        TooCostlyError: there is one.
    """
    match node:
        case Sequence(parts) | Choice(parts):
            for part in parts:
                check_repeats(part, rules)
        case Repeat(part, _, most):
            if most != 1 and nullable(part, rules):
                raise TooCostlyError("it repeats a part that may be empty")
            check_repeats(part, rules)
