"""What a kind of log line is: the text that decides a rule, told in a way that is fast to find."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

START = r"(?:^(?:.*\]: |(?:\[\d+\] )?[\d.]+ [A-Z] |[\w.-]+ +\| )?)"
"""Where a message begins: at the line's start, or after what a journal, Docker or a newer build adds."""

_NOT_LITERAL = re.compile(r"\\[1-9]|\{[\d,]+\}")


def has_digits(text: str) -> bool:
    """Whether a text has a digit that a search with all digits set to 0 would miss."""
    return any(letter in "123456789" for letter in text)


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of line, in every wording that was met."""

    name: str
    meaning: str
    """What such a line says, for docs/diagnoses.md."""
    patterns: tuple[re.Pattern[str], ...]
    """What tells most comes first: of several lines, it is the evidence."""
    anchors: tuple[tuple[str, ...], ...]
    """For each pattern, texts of which one is in every line that matches it: what is looked for first."""
    unless: re.Pattern[str] | None
    """A line that has this too says something else: a warning, or a way out that was taken."""
    trouble: bool
    """Whether it tells of trouble: then text that the log quotes, such as a prompt, does not count."""
    numbers: tuple[str, ...]
    """Anchors of the patterns that ask for certain numbers."""

    def match(self, text: str, ranks: Iterable[int]) -> tuple[int, re.Match[str]] | None:
        """Which of these patterns makes this line one of this kind, and where; None where none does."""
        for rank in ranks:
            if found := self.patterns[rank].search(text):
                return None if self.unless and self.unless.search(text) else (rank, found)
        return None


def kind(
    name: str,
    meaning: str,
    *patterns: tuple[str, str],
    unless: str | None = None,
    trouble: bool = True,
) -> Kind:
    """A kind of line from pairs of anchors (joined by ``|``) and a regular expression."""
    return Kind(
        name,
        meaning,
        tuple(re.compile(text) for _, text in patterns),
        tuple(tuple(anchors.split("|")) for anchors, _ in patterns),
        re.compile(unless) if unless else None,
        trouble,
        tuple(
            anchor
            for anchors, text in patterns
            if has_digits(_NOT_LITERAL.sub("", text))
            for anchor in anchors.split("|")
        ),
    )
