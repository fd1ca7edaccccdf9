"""The early end of a load or a request whose backends thrash and get nowhere."""

import asyncio
import time
from pathlib import Path

import pytest
from harness.contracts.diagnosis import FailureClass
from harness.trials.load_generator.samples import Point, Series
from harness.trials.load_generator.thrash_guard import (
    GROWN_BYTES,
    ends_thrash,
    find_stalled_thrash,
    memory_grows,
)
from tests.unit.trials.cluster_double import make_context

MIB = 1 << 20


def point(second: int, *, swap: int = 0, rss: int = 0, faults: int = 0, full: float | None = None) -> Point:
    return Point(second * 10**9, 0, swap, rss, swap, faults, memory_full_avg10=full)


def thrashing(seconds: int, *, growing: int = 0) -> dict[str, list[Point]]:
    each = [point(s, swap=200 * MIB, rss=growing * s, faults=500 * s) for s in range(seconds + 1)]
    return {"a": each, "b": [point(s) for s in range(seconds + 1)]}


def test_thrash_without_progress_is_hopeless_after_a_minute_and_says_why() -> None:
    found = find_stalled_thrash(thrashing(60), progress=False, over_s=60)
    assert found is not None
    assert found.failure_class is FailureClass.SWAP_THRASH
    assert [one.line for one in found.evidence] == [
        "rpc-server had up to 200 MiB in swap; 500 major faults/s over 60 s",
        "ended early: no progress within 60 s",
    ]


def test_what_moves_or_has_not_thrashed_long_is_left_alone() -> None:
    assert find_stalled_thrash(thrashing(60), progress=True, over_s=60) is None
    assert find_stalled_thrash(thrashing(30), progress=False, over_s=60) is None
    assert find_stalled_thrash({"a": [point(s) for s in range(61)]}, progress=False, over_s=60) is None, (
        "slow is not thrash"
    )
    assert find_stalled_thrash({}, progress=False, over_s=60) is None


def test_node_that_stands_still_for_memory_thrashes_though_it_takes_few_faults() -> None:
    pressed = {"a": [point(s, swap=200 * MIB, full=45.0) for s in range(61)]}
    found = find_stalled_thrash(pressed, progress=False, over_s=60)
    assert found is not None
    assert "memory full 45 % of the time" in found.evidence[0].line
    assert (
        find_stalled_thrash(
            {"a": [point(s, swap=200 * MIB, full=5.0) for s in range(61)]}, progress=False, over_s=60
        )
        is None
    )


def test_load_gets_somewhere_while_its_backends_hold_more_and_more() -> None:
    assert memory_grows(thrashing(60, growing=GROWN_BYTES // 60 + 1))
    assert not memory_grows(thrashing(60, growing=1))


async def test_thrash_of_the_trial_before_is_not_held_against_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    enough = asyncio.Event()

    class WatchedSeries(Series):
        def windows(self, nodes: object, start_ns: int, end_ns: int) -> dict[str, list[Point]]:
            asked.append((start_ns, end_ns))
            if len(asked) > 1:
                enough.set()
            return {}

    monkeypatch.setattr("harness.trials.load_generator.thrash_guard.CHECK_EVERY_S", 0.01)
    ctx = make_context(tmp_path)
    ctx.sampler.series = WatchedSeries()
    begun_ns = time.time_ns()
    async with ends_thrash(ctx):
        await enough.wait()
    assert all(start >= begun_ns for start, _ in asked)
