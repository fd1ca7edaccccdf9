"""The node's ring file: the last ten minutes of samples as JSON lines in a few numbered segments.

A segment is appended to and never rewritten; the oldest is removed when a new one is begun. A line cut by a
crash is dropped when the writer comes back, and no reader ever yields it. Segments are synced when they
are full, so a power cut costs at most the newest one.
"""

import json
import os
from collections.abc import Callable, Iterator
from errno import ENOSPC
from math import ceil
from pathlib import Path

KEEP_LINES = 600
SEGMENT_LINES = 60
_SUFFIX = ".jsonl"


def segments(folder: Path) -> list[Path]:
    """Segments of the ring, oldest first; empty where there is no ring yet."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.suffix == _SUFFIX and path.stem.isdigit())
    return sorted(found, key=lambda path: int(path.stem))


class RingWriter:
    """Appends lines to the ring, going on where the last writer stopped."""

    def __init__(
        self, folder: Path, keep_lines: int = KEEP_LINES, segment_lines: int = SEGMENT_LINES
    ) -> None:
        self._folder = folder
        self._segment_lines = segment_lines
        self._keep_segments = ceil(keep_lines / segment_lines) + 1
        folder.mkdir(parents=True, exist_ok=True)
        existing = segments(folder)
        self._index = int(existing[-1].stem) if existing else 0
        self._fd = self._open()
        self._lines = self._drop_torn_tail()

    def append(self, line: str) -> None:
        """Add one line (without its newline); a line is written whole or not at all.

        Raises:
            OSError: the disk refused it; what was written before stands.
        """
        if self._lines >= self._segment_lines:
            self._begin_segment()
        data = line.encode() + b"\n"
        size = os.fstat(self._fd).st_size
        written = os.write(self._fd, data)
        if written != len(data):
            os.ftruncate(self._fd, size)
            raise OSError(ENOSPC, os.strerror(ENOSPC), str(self._path()))
        self._lines += 1

    def close(self) -> None:
        """Sync what was written and let go of the file."""
        _sync_and_close(self._fd)

    def _path(self) -> Path:
        return self._folder / f"{self._index:010d}{_SUFFIX}"

    def _open(self) -> int:
        return os.open(self._path(), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def _begin_segment(self) -> None:
        full, self._index = self._fd, self._index + 1
        try:
            self._fd = self._open()
        except OSError:  # no room for it: the full one stays in use, and the next sample tries again
            self._index -= 1
            raise
        self._lines = 0
        _sync_and_close(full)
        for old in segments(self._folder)[: -self._keep_segments]:
            old.unlink(missing_ok=True)

    def _drop_torn_tail(self) -> int:
        """Cut what follows the last newline; returns the number of whole lines."""
        data = self._path().read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.ftruncate(self._fd, whole)
        return data.count(b"\n")


def _sync_and_close(descriptor: int) -> None:
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def read_since(folder: Path, since_ns: int = 0) -> Iterator[str]:
    """Sample lines taken after ``since_ns`` (UTC nanoseconds), oldest first."""
    return _Reader(folder, since_ns).unread()


def follow(folder: Path, since_ns: int, wait: Callable[[], bool]) -> Iterator[str]:
    """Like read_since, then each new line as it is written.

    Args:
        wait: called when there is nothing new; pauses a little and returns whether to go on.
    """
    reader = _Reader(folder, since_ns)
    while True:
        yield from reader.unread()
        if not wait():
            return


class _Reader:
    """Remembers how far it has read; never disturbs the writer."""

    def __init__(self, folder: Path, since_ns: int) -> None:
        self._folder = folder
        self._since_ns = since_ns
        self._index = -1
        self._offset = 0

    def unread(self) -> Iterator[str]:
        present = segments(self._folder)
        if present and int(present[-1].stem) < self._index:  # the ring was removed and begun again
            self._index = -1
        for path in present:
            index = int(path.stem)
            if index < self._index:
                continue
            if index > self._index:
                self._index, self._offset = index, 0
            yield from self._lines(path)

    def _lines(self, path: Path) -> Iterator[str]:
        try:
            with path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:  # removed by the writer since it was listed
            return
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                return  # still being written
            self._offset += len(line)
            time_ns = _time_ns(line)
            if time_ns is not None and time_ns > self._since_ns:
                yield line.decode().rstrip("\n")


def _time_ns(line: bytes) -> int | None:
    try:
        time_ns = json.loads(line)["time_ns"]
    except (ValueError, KeyError, TypeError):
        return None  # not a sample: left by a crash or by a stranger
    return time_ns if isinstance(time_ns, int) else None
