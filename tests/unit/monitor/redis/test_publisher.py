"""What is kept for Redis, and how far a clock is off: the parts of publishing that need no Redis."""

import json
from pathlib import Path
from threading import Thread

import pytest
from harness.monitor.common import MonitorError
from harness.monitor.redis import RedisSettings, connection_options
from harness.monitor.redis.publisher import CLOCK_READING_VALID_S, Backlog, ClockOffset
from harness.monitor.redis.writer import ClockReading, Entry
from hypothesis import given
from hypothesis import strategies as st

MS = 1_000_000
SECOND = 1_000 * MS


def entries(*seconds: int) -> list[Entry]:
    return [Entry(second * SECOND, f"line {second}") for second in seconds]


def filled(*seconds: int, keep: int = 600) -> Backlog:
    backlog = Backlog(keep)
    for entry in entries(*seconds):
        backlog.add(entry)
    return backlog


def test_backlog_gives_what_is_later_oldest_first() -> None:
    assert filled(1, 2, 3, 4).after(1000, limit=2) == entries(2, 3)
    assert filled(1, 2).after(2000, limit=9) == []


def test_backlog_is_bounded() -> None:
    assert filled(*range(10), keep=3).after(0, limit=99) == entries(7, 8, 9)


def test_samples_of_an_earlier_process_come_first_and_only_once() -> None:
    backlog = filled(4, 5)
    backlog.prepend(json.dumps({"time_ns": second * SECOND}) for second in (2, 3, 4))
    assert [entry.time_ns // SECOND for entry in backlog.after(0, limit=99)] == [2, 3, 4, 5]


def test_clock_that_was_set_back_drops_what_it_dated_in_its_future() -> None:
    assert filled(1, 2, 900, 901, 3).after(0, limit=99) == entries(1, 2, 3)


@given(st.lists(st.integers(0, 50)))
def test_backlog_is_always_in_order(seconds: list[int]) -> None:
    kept = [entry.ms for entry in filled(*seconds, keep=7).after(-1, limit=99)]
    assert kept == sorted(set(kept))
    assert kept[-1:] == [second * 1000 for second in seconds[-1:]]


def test_waiting_ends_with_the_next_sample() -> None:
    backlog = filled(1)
    waiting = Thread(target=backlog.wait_for_newer, args=(backlog.newest(), 60.0))
    waiting.start()
    backlog.add(*entries(2))
    waiting.join(timeout=30)
    assert not waiting.is_alive()


def test_offset_is_taken_from_the_middle_of_the_round_trip() -> None:
    reading = ClockReading.from_round_trip(
        sent_ns=10 * SECOND, head_ns=9 * SECOND, received_ns=10 * SECOND + 4 * MS, at_s=1.0
    )
    assert reading.offset_s == pytest.approx(1.002)
    assert reading.error_s == pytest.approx(0.002)


@given(st.integers(-(10**12), 10**12), st.integers(0, 10**9), st.integers(0, 10**9))
def test_true_offset_is_within_the_error(offset_ns: int, there_ns: int, back_ns: int) -> None:
    sent = 10**18
    reading = ClockReading.from_round_trip(
        sent, sent + there_ns - offset_ns, sent + there_ns + back_ns, at_s=0.0
    )
    assert abs(reading.offset_s - offset_ns / 1e9) <= reading.error_s + 1e-6


SHARP = ClockReading(offset_s=0.010, error_s=0.001, at_s=100.0)


def offset_after(*readings: ClockReading) -> ClockOffset:
    clock = ClockOffset()
    for reading in readings:
        clock.add(reading)
    return clock


@pytest.mark.parametrize(
    ("why", "new", "kept"),
    [
        ("a slow answer that may be as true", ClockReading(0.030, 0.050, 110.0), True),
        ("a smaller error", ClockReading(0.0105, 0.0005, 110.0), False),
        ("the clock was set", ClockReading(5.0, 0.050, 110.0), False),
        ("the old one is too old", ClockReading(0.030, 0.050, 101.0 + CLOCK_READING_VALID_S), False),
    ],
)
def test_reading_with_the_smaller_error_is_kept_unless_the_new_one_contradicts_it(
    why: str, new: ClockReading, kept: bool
) -> None:
    assert offset_after(SHARP, new).at(new.at_s) == (SHARP if kept else new).offset_s
    assert offset_after(new).at(new.at_s) == new.offset_s


def test_offset_is_not_known_when_the_last_reading_is_too_old() -> None:
    assert offset_after(SHARP).at(100.0 + CLOCK_READING_VALID_S) == 0.010
    assert offset_after(SHARP).at(101.0 + CLOCK_READING_VALID_S) is None
    assert offset_after().at(0.0) is None


def test_password_is_read_without_its_newline(tmp_path: Path) -> None:
    def password(name: str) -> str:
        values = {"address": "127.0.0.1", "username": "llama-monitor", "password_file": tmp_path / name}
        read: str = connection_options(RedisSettings.model_validate(values))["password"]
        return read

    (tmp_path / "key").write_text("secret\n")
    (tmp_path / "empty").write_text("\n")
    assert password("key") == "secret"
    for name in ("empty", "none"):
        with pytest.raises(MonitorError, match=name):
            password(name)
