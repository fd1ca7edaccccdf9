"""Finds the lines that matter in logs of any size, whatever bytes they hold.

A log is read in blocks. Its lines differ mostly in their numbers: with every digit set to 0, a long log has
few different lines, and each of these is looked at once. So 200 MB take seconds, and little more memory than
a block.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.contracts.diagnosis import Evidence
from harness.diagnosis.logs.anchor_index import NEEDLES, anchors_in, asks_for_numbers, tried
from harness.diagnosis.logs.pattern import Kind
from harness.diagnosis.logs.patterns.load import LOAD
from harness.diagnosis.logs.quoted import informs, quote_at

Log = Path | Sequence[str]
"""A log: a file, or lines that were read already."""

_BLOCK = 2 << 20
_LONGEST = 8 << 10
"""Of a longer line only the beginning is looked at: llama.cpp's own messages are short, prompts are not."""
_KEPT = 1_000
"""Lines of one kind that are kept; of more, only the last beside them."""
_LOAD_LINES = 20_000
_DULL = 200_000
"""Different lines that are remembered as saying nothing."""

_SAME = bytes.maketrans(b"123456789", b"000000000")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Hit:
    """A line of some kind: where it stands, counted over all logs, and what it says."""

    at: int
    source: str
    number: int
    text: str
    rank: int = 0
    """Which pattern of its kind found it: the lower, the more it tells."""
    name: str | None = None
    """The process that the line names, where it names one."""

    @property
    def evidence(self) -> Evidence:
        """The line with ``file:lineno`` as its source."""
        return Evidence(source=f"{self.source}:{self.number}", line=self.text)


@dataclass
class Seen:
    """What was found in some logs."""

    hits: dict[str, list[Hit]] = field(default_factory=dict)
    load_lines: list[str] = field(default_factory=list)
    """Lines that tell of a load, for ``parse_load_log``."""
    first: Evidence | None = None
    last: Evidence | None = None
    """The first and the last line that is not blank."""

    def all(self, kind: Kind) -> list[Hit]:
        """Lines of one kind, in order; the first thousand and the last."""
        return self.hits.get(kind.name, [])

    def find(self, kind: Kind, after: int = -1) -> Hit | None:
        """The first line of one kind, after a place."""
        return next((hit for hit in self.all(kind) if hit.at > after), None)

    def last_at(self, kind: Kind) -> int:
        """Where the last line of a kind stands; -1 without one."""
        found = self.all(kind)
        return found[-1].at if found else -1


def scan(logs: Mapping[str, Log]) -> Seen:
    """Search logs, by name, for every kind of line.

    A file that cannot be read, or no further, counts as far as it could be read.
    """
    search, base = _Search(), 0
    for name, log in logs.items():
        number = 0
        for block in _blocks(log):
            search.block(name, block, number, base)
            number += block.count(b"\n")
        base += number + 1
    return search.seen


def _blocks(log: Log) -> Iterator[bytes]:
    """A log's bytes in pieces of whole lines; a line longer than a piece is cut."""
    if not isinstance(log, Path):
        yield "\n".join(log).encode(errors="replace")
        return
    try:
        with log.open("rb") as file:
            head = file.read(2)
            wide = head in _UTF16
            rest = b"" if wide else head
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


class _Search:
    """One search: what was found, and which lines have been looked at before."""

    def __init__(self) -> None:
        self.seen = Seen()
        self._dull: set[bytes] = set()
        self._known: dict[bytes, tuple[tuple[Kind, int, str | None], ...] | None] = {}
        """What a line with these letters says; None where its numbers matter."""

    def block(self, source: str, block: bytes, first_number: int, base: int) -> None:
        """Look at whole lines, the first of which is number ``first_number`` (from 0) of its log."""
        self._note_ends(source, block, first_number)
        keys = block.translate(_SAME).split(b"\n")
        self._look_at(set(keys))
        if self._known.keys().isdisjoint(keys):
            return
        lines = block.split(b"\n")
        for index, key in enumerate(keys):
            if key in self._known:
                self._line(key, lines[index], source, first_number + index, base)

    def _look_at(self, keys: set[bytes]) -> None:
        """Tell the lines that may matter from those that say nothing."""
        new = keys - self._dull - self._known.keys()
        if not new:
            return
        text = b"\n".join(new)
        found = set()
        match = NEEDLES.search(text)
        while match:
            start = text.rfind(b"\n", 0, match.start()) + 1
            end = text.find(b"\n", match.end())
            found.add(text[start : end if end >= 0 else None])
            match = NEEDLES.search(text, end) if end >= 0 else None
        if len(self._dull) > _DULL:
            self._dull.clear()
        if len(self._known) > _DULL:
            self._known.clear()
        self._dull |= new - found
        self._known |= dict.fromkeys(found)

    def _line(self, key: bytes, raw: bytes, source: str, index: int, base: int) -> None:
        says = self._known[key]
        text = None
        if says is None:
            text = _text(raw)
            anchors = anchors_in(text)
            says = tuple(_kinds_of(text, anchors))
            if not asks_for_numbers(anchors):
                self._remember(key, says)
        for kind, rank, name in says:
            kept = self.seen.hits.setdefault(kind.name, [])
            text = text or _text(raw)
            hit = Hit(base + index, source, index + 1, text.strip(), rank, name)
            if len(kept) < _KEPT:
                kept.append(hit)
            else:
                kept[-1] = hit
            if kind is LOAD and len(self.seen.load_lines) < _LOAD_LINES:
                self.seen.load_lines.append(text)

    def _remember(self, key: bytes, says: tuple[tuple[Kind, int, str | None], ...]) -> None:
        if says:
            self._known[key] = says
        else:
            del self._known[key]
            self._dull.add(key)

    def _note_ends(self, source: str, block: bytes, first_number: int) -> None:
        end = len(block.rstrip())
        if not end:
            return
        if self.seen.first is None:
            start = len(block) - len(block.lstrip())
            number = first_number + block.count(b"\n", 0, start) + 1
            line = _text(block[start : start + _LONGEST].split(b"\n", 1)[0])
            self.seen.first = Evidence(source=f"{source}:{number}", line=line.strip())
        number = first_number + block.count(b"\n", 0, end) + 1
        line = _text(block[max(0, end - _LONGEST) : end].rsplit(b"\n", 1)[-1])
        self.seen.last = Evidence(source=f"{source}:{number}", line=line.strip())


def _text(raw: bytes) -> str:
    return _ANSI.sub("", raw[:_LONGEST].decode("utf-8", errors="replace")).rstrip()


def _kinds_of(text: str, anchors: set[str]) -> Iterator[tuple[Kind, int, str | None]]:
    """What a line says, by which pattern, and the process that it names."""
    if not anchors:
        return
    quoted, only_informs = quote_at(text), informs(text)
    for kind, ranks in tried(anchors):
        if kind.trouble and only_informs:
            continue
        found = kind.match(text, ranks)
        if found and not (kind.trouble and quoted <= found[1].start()):
            yield kind, found[0], found[1].groupdict().get("name")
