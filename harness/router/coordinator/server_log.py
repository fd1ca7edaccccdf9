"""The log of one coordinator: read through a pipe, filtered, and kept within a bound."""

import errno
import fcntl
import logging
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from harness.llama.log_filter import LogFilter
from harness.router.json_log import log

_BLOCK_BYTES = 64 * 1024
_PIPE_BYTES = 1024 * 1024
"""The largest pipe that Linux gives an ordinary user."""
_WAITING_BLOCKS = 64
"""Blocks that may wait for the disk; the lines of others are lost: llama-server never waits."""
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)

Count = Callable[[str, int], None]
"""Counts lines by what became of them: ``cut``, ``left_out``, ``rotated`` or ``lost``."""


class ServerLog:
    """Writes ``server.log`` from what llama-server prints.

    One thread empties the pipe and filters, another one writes: a slow disk costs lines, and the log says
    how many. A log that reaches its limit keeps its first quarter, which has the lines of the load, and its
    newest quarter.

    Args:
        path: the file, which must not exist.
        limit_bytes: of the file.
        line_bytes: of one line; a longer one is cut.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, *, limit_bytes: int, line_bytes: int, count: Count) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)
        self._limit = limit_bytes
        self._filter = LogFilter(line_bytes)
        self._count = count
        self._waiting: queue.Queue[bytes | None] = queue.Queue(_WAITING_BLOCKS)
        self._size = self._rotated_bytes = self._lost = 0
        self._written = threading.Event()
        self.problem: str | None = None
        """Why lines could not be written."""
        self.disk_full = False
        """Whether the first of them could not be written because the disk is full."""

    def start(self) -> int:
        """Start to read; the descriptor to write to, which the caller closes."""
        reading, writing = os.pipe()
        with suppress(OSError):  # this user's quota for pipes is used up: a smaller pipe is enough
            fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        for work, arguments in ((self._read, (reading,)), (self._write_all, ())):
            threading.Thread(target=work, args=arguments, name="server_log", daemon=True).start()
        return writing

    def wait(self, timeout_s: float) -> bool:
        """Whether all lines were written within ``timeout_s`` after the last writer has closed the pipe."""
        return self._written.wait(timeout_s)

    def _read(self, reading: int) -> None:
        cut = left_out = 0
        try:
            while block := os.read(reading, _BLOCK_BYTES):
                self._pass_on(self._filter.feed(block))
                self._count("cut", self._filter.cut - cut)
                self._count("left_out", self._filter.left_out - left_out)
                cut, left_out = self._filter.cut, self._filter.left_out
            self._pass_on(self._filter.end() + _note(left_out, "lines that may quote requests were left out"))
        finally:
            os.close(reading)
            self._waiting.put(None)

    def _pass_on(self, lines: bytes) -> None:
        if not lines:
            return
        try:
            self._waiting.put_nowait(
                _note(self._lost, "lines were lost here: they could not be written") + lines
            )
            self._lost = 0
        except queue.Full:
            self._lose(lines)

    def _lose(self, lines: bytes) -> None:
        lost = lines.count(b"\n")
        self._lost += lost
        self._count("lost", lost)

    def _write_all(self) -> None:
        try:
            while (lines := self._waiting.get()) is not None:
                try:
                    if self._size + len(lines) > self._limit:
                        self._rotate()
                    self._append(lines)
                except OSError as error:
                    self._lose(lines)
                    if self.problem is None:
                        self.disk_full = error.errno in DISK_FULL_ERRORS
                        self.problem = error.strerror
                        log("coordinator_log_not_written", level=logging.ERROR, error=str(error))
        finally:
            os.close(self._file)
            self._written.set()

    def _append(self, data: bytes) -> None:
        while data:
            written = os.write(self._file, data)
            self._size += written
            data = data[written:]

    def _rotate(self) -> None:
        quarter = self._limit // 4
        head = os.pread(self._file, quarter, 0)
        head_end = head.rfind(b"\n") + 1
        tail_from = max(head_end, self._size - quarter)
        tail = os.pread(self._file, quarter, tail_from)
        tail = tail[tail.find(b"\n") + 1 :]
        dropped = os.pread(self._file, self._size - len(tail) - head_end, head_end)
        old_note = bool(self._rotated_bytes)
        self._rotated_bytes += len(dropped)
        self._count("rotated", dropped.count(b"\n") - old_note)
        os.ftruncate(self._file, head_end)
        self._size = head_end
        self._append(
            _note(self._rotated_bytes, f"bytes were dropped here: this log is kept to {self._limit} bytes")
        )
        self._append(tail)


def _note(number: int, text: str) -> bytes:
    return f"llama-harness: {number} {text}\n".encode() if number else b""
