"""The log of a coordinator on disk: bounded, filtered, and never in llama-server's way."""

import errno
import os
import threading
from collections import Counter
from pathlib import Path

import pytest
from harness.router.coordinator.server_log import ServerLog

LIMIT = 256 * 1024


def written(folder: Path, output: bytes, **settings: int) -> tuple[bytes, Counter[str], ServerLog]:
    """What ``server.log`` holds after ``output``, and the counts of lines."""
    counts: Counter[str] = Counter()
    path = folder / "server.log"
    log = ServerLog(
        path,
        limit_bytes=settings.get("limit", LIMIT),
        line_bytes=2048,
        count=lambda fate, n: counts.update({fate: n}),
    )
    with open(log.start(), "wb") as pipe:  # noqa: PTH123 - a descriptor
        pipe.write(output)
    assert log.wait(20)
    return path.read_bytes(), +counts, log


def test_output_is_written_as_it_came(tmp_path: Path) -> None:
    assert written(tmp_path, b"one\ntwo")[:2] == (b"one\ntwo\n", Counter())


def test_full_log_keeps_its_beginning_and_its_newest_end(tmp_path: Path) -> None:
    lines = [b"load_tensors: offloaded 2/2 layers", *(b"srv  line: %d" % n for n in range(50_000))]
    log, counts, _ = written(tmp_path, b"\n".join(lines) + b"\n")
    assert len(log) <= LIMIT
    kept = log.splitlines()
    notes = [line for line in kept if line.startswith(b"llama-harness: ")]
    assert kept[:100] == lines[:100]
    assert kept[-100:] == lines[-100:]
    assert len(notes) == 1
    assert notes[0].endswith(b"bytes were dropped here: this log is kept to 262144 bytes")
    assert counts["rotated"] == len(lines) - len(kept) + 1


def test_line_of_megabytes_and_quoted_requests_take_no_space(tmp_path: Path) -> None:
    echo = b"got exception: " + b"SECRET " * 600_000 + b"\nroot ::= SECRET\n"
    log, counts, _ = written(tmp_path, b"main: model loaded\n" + echo)
    assert len(log) < 5000
    assert b"ROOT" not in log.upper()
    assert counts == {"cut": 1, "left_out": 1}


def test_lines_that_cannot_be_written_are_counted_and_never_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full from the second line on: every byte of the pipe is read all the same."""
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if (tmp_path / "server.log").stat().st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:4])

    monkeypatch.setattr(os, "write", full)
    log, counts, server_log = written(tmp_path, b"one\n" + b"x" * 100 * 1024 * 40 + b"\n")
    assert log == b"one\n"
    assert (server_log.disk_full, server_log.problem) == (True, "No space left on device")
    assert counts["lost"] >= 1


def test_writer_that_is_stuck_loses_lines_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, write = threading.Event(), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: (gate.wait(20), write(fd, data))[1])
    counts: Counter[str] = Counter()
    path = tmp_path / "server.log"
    log = ServerLog(
        path, limit_bytes=LIMIT << 8, line_bytes=2048, count=lambda fate, n: counts.update({fate: n})
    )
    with open(log.start(), "wb") as pipe:  # noqa: PTH123 - a descriptor
        for _ in range(20_000):
            pipe.write(b"x" * 1023 + b"\n")  # 20 MB: far more than waits, and the pipe takes it
        pipe.flush()
        gate.set()
    assert log.wait(20)
    assert counts["lost"] > 0
    assert path.read_bytes().count(b"\n") + counts["lost"] >= 20_000
