"""The ring: bounded, crash-safe, readable while it is written."""

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.monitor.ring import RingWriter, follow, read_since, segments


def line(time_ns: int) -> str:
    return json.dumps({"time_ns": time_ns, "node": "node1"})


def fill(folder: Path, times: range, **bounds: int) -> None:
    ring = RingWriter(folder, **bounds)
    for time_ns in times:
        ring.append(line(time_ns))
    ring.close()


def times(folder: Path, since_ns: int = 0) -> list[int]:
    return [json.loads(text)["time_ns"] for text in read_since(folder, since_ns)]


def test_samples_come_back_in_order_after_a_given_time(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 8), keep_lines=100, segment_lines=3)
    assert times(tmp_path) == [1, 2, 3, 4, 5, 6, 7]
    assert times(tmp_path, since_ns=5) == [6, 7]


def test_ring_keeps_the_last_lines_and_no_more_than_a_segment_beyond(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 1001), keep_lines=30, segment_lines=10)
    kept = times(tmp_path)
    assert kept == list(range(kept[0], 1001))
    assert 30 <= len(kept) <= 40
    assert len(segments(tmp_path)) == 4


def test_full_segments_are_never_rewritten(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 7), keep_lines=100, segment_lines=3)
    before = segments(tmp_path)[0].stat()
    fill(tmp_path, range(7, 20), keep_lines=100, segment_lines=3)
    after = segments(tmp_path)[0].stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_restart_goes_on_in_the_same_ring(tmp_path: Path) -> None:
    for start in range(1, 21):  # twenty restarts cost no room
        fill(tmp_path, range(start, start + 1), keep_lines=100, segment_lines=10)
    assert times(tmp_path) == list(range(1, 21))
    assert len(segments(tmp_path)) == 2


def test_line_cut_by_a_crash_is_dropped_and_costs_no_other(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 4))
    with segments(tmp_path)[-1].open("a") as file:
        file.write('{"time_ns": 4, "no')
    assert times(tmp_path) == [1, 2, 3]
    fill(tmp_path, range(5, 6))
    assert times(tmp_path) == [1, 2, 3, 5]


def test_garbage_after_a_power_cut_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 3))
    with segments(tmp_path)[-1].open("ab") as file:
        file.write(b"\0" * 50 + b"\n[1]\n" + b'{"time_ns": "x"}\n')
    fill(tmp_path, range(3, 4))
    assert times(tmp_path) == [1, 2, 3]


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text("mine\n")
    fill(tmp_path, range(1, 100), keep_lines=10, segment_lines=5)
    assert (tmp_path / "notes.jsonl").read_text() == "mine\n"
    assert times(tmp_path)[-1] == 99


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


def test_line_that_does_not_fit_on_the_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    ring = RingWriter(tmp_path)
    ring.append(line(1))
    size = segments(tmp_path)[0].stat().st_size
    with largest_file(size + 10), pytest.raises(OSError):
        ring.append(line(2))
    assert segments(tmp_path)[0].stat().st_size == size
    ring.append(line(3))
    ring.close()
    assert times(tmp_path) == [1, 3]


def test_ring_goes_on_once_there_is_room_for_a_segment_again(tmp_path: Path) -> None:
    ring = RingWriter(tmp_path, keep_lines=20, segment_lines=2)
    for time_ns in (1, 2):
        ring.append(line(time_ns))
    taken = tmp_path / f"{1:010d}.jsonl"
    taken.mkdir()  # stands in the way of the next segment, as a full disk would
    for _ in range(2):
        with pytest.raises(OSError):
            ring.append(line(3))
    taken.rmdir()
    ring.append(line(4))
    ring.close()
    assert times(tmp_path) == [1, 2, 4]


def test_follower_sees_each_line_once_across_segments(tmp_path: Path) -> None:
    ring = RingWriter(tmp_path, keep_lines=20, segment_lines=5)
    clock = iter(range(1, 41))

    def write_three() -> bool:
        for _, time_ns in zip(range(3), clock, strict=False):
            ring.append(line(time_ns))
        return times_read[-1:] != [40]

    times_read: list[int] = []
    for text in follow(tmp_path, 0, write_three):
        times_read.append(json.loads(text)["time_ns"])
    ring.close()
    assert times_read == list(range(1, 41))


def test_follower_of_a_ring_that_is_started_again_goes_on(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 31), keep_lines=10, segment_lines=5)
    rounds = iter([True, True, False])

    def start_again() -> bool:
        for path in segments(tmp_path):
            path.unlink()
        fill(tmp_path, range(100, 103))
        return next(rounds)

    times_read = [json.loads(text)["time_ns"] for text in follow(tmp_path, 29, start_again)]
    assert times_read[0] == 30
    assert times_read[1:4] == [100, 101, 102]


def test_no_ring_yet_is_empty(tmp_path: Path) -> None:
    assert times(tmp_path / "none") == []


def test_segments_are_readable_by_everybody(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        fill(tmp_path, range(1, 2))
    finally:
        os.umask(umask)
    assert segments(tmp_path)[0].stat().st_mode & 0o777 == 0o644
