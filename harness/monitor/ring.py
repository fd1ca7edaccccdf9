"""The node's ring file: the last ten minutes of samples as JSON lines in a few numbered segments.

A segment is appended to and never rewritten; the oldest is removed when a new one is started. A line cut by a
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
    paths = (path for path in folder.iterdir() if path.suffix == _SUFFIX and path.stem.isdigit())
    return sorted(paths, key=lambda path: int(path.stem))


class RingWriter:
    """Appends lines to the ring, after those of an earlier writer."""

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
            OSError: the disk refused it; earlier lines are intact.
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
        """Sync and close the segment."""
        _sync_and_close(self._fd)

    def _path(self) -> Path:
        return self._folder / f"{self._index:010d}{_SUFFIX}"

    def _open(self) -> int:
        return os.open(self._path(), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def _begin_segment(self) -> None:
        full, self._index = self._fd, self._index + 1
        try:
            self._fd = self._open()
        except OSError:  # no room for it: the full one stays in use; the next append tries again
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
    return follow(folder, since_ns, lambda: False)


def follow(folder: Path, since_ns: int, wait: Callable[[], bool]) -> Iterator[str]:
    """Like read_since, then each new line as it is written.

    Args:
        wait: called when there is nothing new; pauses and returns whether to continue.
    """
    current, offset = -1, 0
    while True:
        present = segments(folder)
        if present and int(present[-1].stem) < current:  # the ring was removed and started again
            current = -1
        for path in present:
            if (index := int(path.stem)) < current:
                continue
            if index > current:
                current, offset = index, 0
            for line in _whole_lines(path, offset):
                offset += len(line)
                if _time_ns(line) > since_ns:
                    yield line.decode().rstrip("\n")
        if not wait():
            return


def _whole_lines(path: Path, offset: int) -> list[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:  # removed by the writer since it was listed
        return []
    return data[: data.rfind(b"\n") + 1].splitlines(keepends=True)  # without one that is still being written


def _time_ns(line: bytes) -> int:
    try:
        time_ns = json.loads(line)["time_ns"]
    except (ValueError, KeyError, TypeError):
        return 0  # not a sample: left by a crash or written by another program
    return time_ns if isinstance(time_ns, int) else 0
