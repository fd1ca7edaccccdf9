"""Finds the line that decides a diagnosis in the run's own logs, with the lines around it."""

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from harness.report.format import printable

AROUND = 6
LONGEST_LINE = 600
LARGEST_LOG = 64 * 1024**2
_SOURCE = re.compile(r"(?P<file>[^\s:]+?):(?P<line>\d+)$")


@dataclass(frozen=True)
class LogLine:
    """One line of an excerpt."""

    number: int
    text: str
    deciding: bool


@dataclass(frozen=True)
class Excerpt:
    """The lines around the one that decides."""

    path: str
    """Relative to the run folder."""
    lines: list[LogLine]


def find_excerpt(folder: Path, source: str, line: str, hints: Iterable[str]) -> Excerpt | None:
    """The part of a log that ``source`` (``server.log:194``) and ``line`` point at.

    Only files under the run's ``logs/`` are read, whatever ``source`` says.

    Args:
        folder: the run folder.
        source: where the evidence comes from.
        line: the deciding line as the diagnosis quotes it.
        hints: names (start, trial, node) that the right log's path holds, most telling first.

    Returns:
        None where no log holds the line.
    """
    place = _SOURCE.search(source)
    number = int(place["line"]) if place else None
    for path in _candidates(folder / "logs", source, place["file"] if place else None, list(hints)):
        lines = _around(path, number, line)
        if lines:
            return Excerpt(path.relative_to(folder).as_posix(), lines)
    return None


def _candidates(logs: Path, source: str, name: str | None, hints: list[str]) -> list[Path]:
    if not logs.is_dir():
        return []
    root = logs.resolve()
    files = [p for p in sorted(logs.rglob("*")) if p.is_file() and p.resolve().is_relative_to(root)]
    words = [w for w in re.split(r"[\s:/]+", source) if w]
    file_name = Path(name).name if name else None
    candidates = [p for p in files if p.name == file_name] if file_name else []
    if not candidates:
        candidates = [p for p in files if any(w in p.relative_to(logs).as_posix() for w in [*words, *hints])]

    def rank(path: Path) -> tuple[int, str]:
        place = path.relative_to(logs).as_posix()
        return next((i for i, hint in enumerate(hints) if hint and hint in place), len(hints)), place

    return sorted(candidates, key=rank)


def _around(path: Path, number: int | None, line: str) -> list[LogLine]:
    """Lines around the one that reads ``line``, the nearest to ``number`` where several do."""
    text_wanted = line.strip()
    if not text_wanted or path.stat().st_size > LARGEST_LOG:
        return []
    with path.open(encoding="utf-8", errors="replace") as stream:
        hits = [n for n, text in enumerate(stream, 1) if text_wanted in text]
    if not hits:
        return []
    centre = min(hits, key=lambda n: abs(n - number)) if number else hits[-1]
    first = max(1, centre - AROUND)
    with path.open(encoding="utf-8", errors="replace") as stream:
        cut = deque(islice(enumerate(stream, 1), first - 1, centre + AROUND))
    return [LogLine(n, _printable_line(text), n == centre) for n, text in cut]


def _printable_line(text: str) -> str:
    clean = printable(text.rstrip("\n").expandtabs(4))
    return clean if len(clean) <= LONGEST_LINE else clean[:LONGEST_LINE] + " …"
