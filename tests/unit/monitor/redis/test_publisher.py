"""What is kept for Redis, and how far a clock is off: the parts of publishing that need no Redis."""

import json
from pathlib import Path
from threading import Thread

import pytest
from harness.monitor.command import reader_settings
from harness.monitor.config_file import MonitorError
from harness.monitor.redis.backlog import Backlog, Entry
from harness.monitor.redis.offset import KEPT_FOR_S, Reading, better, offset_now, reading
from harness.monitor.redis.settings import entry_id, entry_ms, read_password
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
    assert filled(1, 2, 3, 4).after(1000, most=2) == entries(2, 3)
    assert filled(1, 2).after(2000, most=9) == []


def test_backlog_is_bounded() -> None:
    assert filled(*range(10), keep=3).after(0, most=99) == entries(7, 8, 9)


def test_samples_of_an_earlier_life_come_first_and_only_once() -> None:
    backlog = filled(4, 5)
    backlog.begin_with(json.dumps({"time_ns": second * SECOND}) for second in (2, 3, 4))
    assert [entry.time_ns // SECOND for entry in backlog.after(0, most=99)] == [2, 3, 4, 5]


def test_clock_that_was_set_back_drops_what_it_dated_in_its_future() -> None:
    assert filled(1, 2, 900, 901, 3).after(0, most=99) == entries(1, 2, 3)


@given(st.lists(st.integers(0, 50)))
def test_backlog_is_always_in_order(seconds: list[int]) -> None:
    kept = [entry.ms for entry in filled(*seconds, keep=7).after(-1, most=99)]
    assert kept == sorted(set(kept))
    assert kept[-1:] == [second * 1000 for second in seconds[-1:]]


def test_waiting_ends_with_the_next_sample() -> None:
    backlog = filled(1)
    waiting = Thread(target=backlog.wait_for_other_than, args=(backlog.newest(), 60.0))
    waiting.start()
    backlog.add(*entries(2))
    waiting.join(timeout=30)
    assert not waiting.is_alive()


def test_entry_id_is_the_samples_time() -> None:
    assert entry_id(1_795_618_783_123_456_789) == "1795618783123-0"
    assert entry_ms("1795618783123-0") == 1_795_618_783_123


def test_offset_is_taken_from_the_middle_of_the_round_trip() -> None:
    found = reading(before_ns=10 * SECOND, head_ns=9 * SECOND, after_ns=10 * SECOND + 4 * MS, at_s=1.0)
    assert found.offset_s == pytest.approx(1.002)
    assert found.error_s == pytest.approx(0.002)


@given(st.integers(-(10**12), 10**12), st.integers(0, 10**9), st.integers(0, 10**9))
def test_true_offset_is_within_the_error(offset_ns: int, there_ns: int, back_ns: int) -> None:
    sent = 10**18
    found = reading(sent, sent + there_ns - offset_ns, sent + there_ns + back_ns, at_s=0.0)
    assert abs(found.offset_s - offset_ns / 1e9) <= found.error_s + 1e-6


SHARP = Reading(offset_s=0.010, error_s=0.001, at_s=100.0)


@pytest.mark.parametrize(
    ("why", "new", "kept"),
    [
        ("a slow answer that may be as true", Reading(0.030, 0.050, 110.0), True),
        ("a sharper one", Reading(0.0105, 0.0005, 110.0), False),
        ("the clock was set", Reading(5.0, 0.050, 110.0), False),
        ("the old one is too old", Reading(0.030, 0.050, 101.0 + KEPT_FOR_S), False),
    ],
)
def test_sharper_of_two_readings_is_kept_unless_both_cannot_be_true(
    why: str, new: Reading, kept: bool
) -> None:
    assert better(SHARP, new) is (SHARP if kept else new)
    assert better(None, new) is new


def test_offset_is_forgotten_when_nothing_was_heard_for_a_while() -> None:
    assert offset_now(SHARP, 100.0 + KEPT_FOR_S) == 0.010
    assert offset_now(SHARP, 101.0 + KEPT_FOR_S) is None
    assert offset_now(None, 0.0) is None


def test_password_is_read_without_its_newline(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    (tmp_path / "empty").write_text("\n")
    assert read_password(tmp_path / "key") == "secret"
    for name in ("empty", "none"):
        with pytest.raises(MonitorError, match=name):
            read_password(tmp_path / name)


def test_wrong_reader_settings_are_one_line_that_names_the_key(tmp_path: Path) -> None:
    config = tmp_path / "redis-reader.json"
    config.write_text('{"address": "node1", "username": "llama-reader", "password_file": "/x"}')
    with pytest.raises(MonitorError, match=r"redis-reader\.json: address: [^\n]+$"):
        reader_settings(config)
