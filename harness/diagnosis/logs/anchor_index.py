"""Which patterns a line has to be tried against: found by the anchors in it, all at once."""

import re
from collections.abc import Iterable, Iterator

from harness.diagnosis.logs.pattern import Kind, has_digits
from harness.diagnosis.logs.patterns import KINDS

_RARE_LAST = "JQZXKVYWBUHGODMPLFCSNEITRA[]'\"(`!<>|={}+@#$%^&*;~?jqzxvkw-.,/\\bygpfmu_hdlc:onrisate 0"
"""Letters as they are found in logs, the rarest first, roughly."""
_SHORTEST = 8

_Tried = list[tuple[Kind, int]]


def _trie(texts: Iterable[str], *, overlapping: bool = False) -> str:
    """One expression that finds any of these texts, by their common beginnings."""
    tree: dict[str, dict] = {}  # type: ignore[type-arg]
    for text in texts:
        node = tree
        for letter in text:
            node = node.setdefault(letter, {})
        node[""] = {}

    def expression(node: dict[str, dict]) -> str:  # type: ignore[type-arg]
        if "" in node:
            return ""
        parts = [re.escape(letter) + expression(below) for letter, below in sorted(node.items())]
        return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"

    return f"(?=({expression(tree)}))" if overlapping else expression(tree)


def _needle(anchor: str) -> str:
    """The end of an anchor from its rarest letter on: the rarer it begins, the faster it is looked for."""
    places = range(max(1, len(anchor) - _SHORTEST + 1))
    return anchor[min(places, key=lambda at: _RARE_LAST.find(anchor[at])) :]


def _by_anchor() -> dict[str, _Tried]:
    found: dict[str, _Tried] = {}
    for kind in KINDS:
        for rank, anchors in enumerate(kind.anchors):
            for anchor in anchors:
                found.setdefault(anchor, []).append((kind, rank))
    if wrong := [anchor for anchor in found if has_digits(anchor)]:
        raise ValueError(f"anchors with digits are never found: {wrong}")
    return found


_PATTERNS = _by_anchor()
_ANCHORS = re.compile(_trie(_PATTERNS, overlapping=True))
_WITH = {
    found: [anchor for anchor in _PATTERNS if anchor.startswith(found)]
    for found in {
        short for short in _PATTERNS if not any(short != a and short.startswith(a) for a in _PATTERNS)
    }
}
"""Anchors by the shortest one that they begin with, which is the one that is found."""
_NUMBERS = frozenset(anchor for kind in KINDS for anchor in kind.numbers)

NEEDLES = re.compile(_trie({_needle(anchor) for anchor in _PATTERNS}).encode())
"""Found in every line that has an anchor, and in few others."""


def anchors_in(text: str) -> set[str]:
    """The anchors that a line has."""
    found = {match[1] for match in _ANCHORS.finditer(text)}
    return {anchor for short in found for anchor in _WITH[short] if anchor in text}


def asks_for_numbers(anchors: set[str]) -> bool:
    """Whether a line that differs in its numbers alone could say something else."""
    return not anchors.isdisjoint(_NUMBERS)


def tried(anchors: set[str]) -> Iterator[tuple[Kind, list[int]]]:
    """Kinds that a line with these anchors may be of, and the patterns to try of each, in order."""
    ranks: dict[Kind, set[int]] = {}
    for anchor in anchors:
        for kind, rank in _PATTERNS[anchor]:
            ranks.setdefault(kind, set()).add(rank)
    for kind in KINDS:
        if kind in ranks:
            yield kind, sorted(ranks[kind])
