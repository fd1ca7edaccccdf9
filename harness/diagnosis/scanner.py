"""Finds the lines that matter in logs of any size, whatever bytes they hold.

A log is read in blocks. One expression finds the few lines that have a word of some kind of line; only these
are matched with the patterns, and of lines that differ in their numbers alone only the first. So 200 MB take
seconds, and little more memory than a block.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.contracts.diagnosis import Evidence
from harness.diagnosis.patterns import Kind, ends, hardware, rpc, start

KINDS: tuple[Kind, ...] = tuple(
    value
    for module in (hardware, rpc, start, ends)
    for value in vars(module).values()
    if isinstance(value, Kind)
)
"""Every kind that a log is searched for."""

Log = Path | Sequence[str]
"""A log: a file, or lines that were read already."""

_BLOCK = 1 << 20
_LONGEST = 8 << 10
"""Of a longer line only the beginning is matched: llama.cpp's own messages are short, prompts are not."""
_KEPT = 1_000
_KEPT_LOAD = 20_000
"""Lines of one kind that are kept; if there are more, only the last one is kept beside them."""
_REMEMBERED = 10_000
_REMEMBERED_BYTES = 500
"""Lines whose meaning is remembered: their number, and the longest."""
DECISIVE_NUMBERS = re.compile(
    rb"(?i)(?<!\d)(?:28|112|13[2479]|141|100\d\d|1073\d{6}|3221\d{6})(?!\d)|0xc000|status=\d|i915"
)
"""Exit and error codes that a pattern asks for: all other numbers say nothing of what a line means."""
_SAME_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Hit:
    """A line of some kind: its place, counted over all logs, and what it says."""

    at: int
    source: str
    number: int
    text: str
    rank: int = 0
    """Which pattern of its kind matched: the lower, the more specific."""
    name: str | None = None
    """The process that the line names, where it names one."""

    @property
    def evidence(self) -> Evidence:
        """The line with ``file:lineno`` as its source."""
        return Evidence(source=f"{self.source}:{self.number}", line=self.text)


@dataclass
class Matches:
    """The lines that matter of some logs."""

    hits: dict[str, list[Hit]] = field(default_factory=dict)
    first_line: Evidence | None = None
    last_line: Evidence | None = None
    """The first and the last line that is not blank."""

    def all(self, kind: Kind) -> list[Hit]:
        """Lines of one kind, in order; the first thousand and the last."""
        return self.hits.get(kind.name, [])

    def first(self, kind: Kind, after: int = -1) -> Hit | None:
        """The first line of one kind, after a place."""
        return next((hit for hit in self.all(kind) if hit.at > after), None)


def scan(logs: Mapping[str, Log]) -> Matches:
    """Search logs, by name, for every kind of line.

    A file that cannot be read, or no further, counts as far as it could be read.
    """
    search, base = _Search(), 0
    for name, log in logs.items():
        number = 1
        for block in _blocks(log):
            search.block(name, block, number, base)
            number += block.count(b"\n")
        base += number
    return search.matches


def _blocks(log: Log) -> Iterator[bytes]:
    """A log's bytes in pieces of whole lines; a line longer than a piece is cut."""
    if not isinstance(log, Path):
        yield "\n".join(log).encode(errors="replace")
        return
    try:
        with log.open("rb") as file:
            start = file.read(2)
            wide = start in _UTF16
            rest = b"" if wide else start
            while piece := file.read(_BLOCK):
                # Windows PowerShell redirects as UTF-16: for ASCII text that is a NUL beside each letter.
                rest += piece.replace(b"\0", b"") if wide else piece
                cut = rest.rfind(b"\n") + 1
                if cut or len(rest) > _BLOCK:
                    cut = cut or len(rest)
                    yield rest[:cut]
                    rest = rest[cut:]
            if rest:
                yield rest
    except OSError:
        return


_Meaning = list[tuple[Kind, int, str | None]]
"""Kinds of a line, the number of the pattern that matched, and the process that the line names."""


class _Search:
    """One search: its matches, and the meaning of lines by their text without numbers."""

    def __init__(self) -> None:
        self.matches = Matches()
        self._known: dict[bytes, _Meaning] = {}

    def block(self, source: str, block: bytes, number: int, base: int) -> None:
        """Match the lines of a block, the first of which is line ``number`` of its log."""
        self._note_ends(source, block, number)
        low, end = block.lower(), 0
        while match := _WORDS.search(low, end):
            start = low.rfind(b"\n", end, match.start()) + 1 or end
            number += low.count(b"\n", end, start)
            end = low.find(b"\n", match.end())
            end = len(low) if end < 0 else end
            self._line(source, block[start : min(end, start + _LONGEST)], number, base)

    def _note_ends(self, source: str, block: bytes, number: int) -> None:
        lines = block.strip()
        if not lines:
            return
        number += block.count(b"\n", 0, block.index(lines))
        if self.matches.first_line is None:
            first = lines[:_LONGEST].split(b"\n", 1)[0]
            self.matches.first_line = Evidence(source=f"{source}:{number}", line=_text(first))
        number += lines.count(b"\n")
        last = lines[-_LONGEST:].rsplit(b"\n", 1)[-1]
        self.matches.last_line = Evidence(source=f"{source}:{number}", line=_text(last))

    def _line(self, source: str, line: bytes, number: int, base: int) -> None:
        for kind, rank, name in self._meaning(line):
            hits = self.matches.hits.setdefault(kind.name, [])
            hit = Hit(base + number, source, number, _text(line).strip(), rank, name)
            if len(hits) < (_KEPT_LOAD if kind is start.LOAD else _KEPT):
                hits.append(hit)
            else:
                hits[-1] = hit

    def _meaning(self, line: bytes) -> _Meaning:
        if len(line) > _REMEMBERED_BYTES or DECISIVE_NUMBERS.search(line):
            return meaning(_text(line))
        key = line.translate(_SAME_DIGITS)
        if key not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = meaning(_text(line))
        return self._known[key]


def meaning(text: str) -> _Meaning:
    """Which kinds of line a line is."""
    words = set(_WORDS_WITHIN.findall(text.lower()))
    kinds = {kind for word in words for kind in _KINDS_BY_WORD[word]}
    return [
        (kind, match[0], match[1].groupdict().get("name")) for kind in kinds if (match := kind.match(text))
    ]


def _text(line: bytes) -> str:
    return _ANSI.sub("", line.decode("utf-8", errors="replace")).rstrip()


def _any_of(texts: Iterable[str]) -> str:
    """One expression for any of these texts, by their common beginnings: four times as fast as a list."""
    tails: dict[str, list[str]] = {}
    for text in texts:
        if not text:
            return ""
        tails.setdefault(text[0], []).append(text[1:])
    parts = [re.escape(letter) + _any_of(rest) for letter, rest in sorted(tails.items())]
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"


_KINDS_BY_WORD = {
    word: [kind for kind in KINDS if word in kind.words] for word in {w for kind in KINDS for w in kind.words}
}
_WORDS = re.compile(_any_of(_KINDS_BY_WORD).encode())
_WORDS_WITHIN = re.compile(f"(?=({_any_of(_KINDS_BY_WORD)}))")
"""The same for one line: also words that overlap."""
