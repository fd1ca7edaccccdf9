"""Sampling continues or warns: full disks, strange lines, newer monitors, other clocks; peaks of a series."""

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from harness.cluster.inventory import Node
from harness.contracts.diagnosis import FailureClass
from harness.diagnosis.node_conditions import find_thrash
from harness.monitor.sample import Sample
from harness.runs.folder import RunFolder, read_samples
from harness.trials.load_generator import samples as sampling
from harness.trials.load_generator.samples import NodeClocks, Point, Sampler, Series

S = 10**9


def line(second: float, **more: Any) -> str:
    memory = {
        "source": "proc",
        "total_bytes": 9,
        "available_bytes": 8,
        "used_bytes": 1,
        "cache_bytes": 0,
        "swap_total_bytes": 0,
        "swap_used_bytes": 0,
        "major_faults": 0,
    }
    return json.dumps({"time_ns": int(second * S), "node": "node1", "memory": memory, "cpu_s": 0} | more)


class Monitors:
    """A node whose monitor prints given texts, one at each connection, and then nothing more."""

    name = "node1"

    def __init__(self, folder: Path, *texts: str) -> None:
        self.since: list[int] = []
        self._commands: list[list[str]] = []
        for number, text in enumerate(texts):
            file = folder / f"monitor-{number}"
            file.write_text(text)
            self._commands.append(["cat", str(file)])

    def fail_first(self, *command: str) -> None:
        self._commands.insert(0, list(command))

    def ssh(self, *argv: str) -> list[str]:
        self.since.append(int(argv[-1]))
        return self._commands.pop(0) if self._commands else ["true"]


Warnings = list[tuple[str | None, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(sampling, "RETRY_S", 0.01)
    monkeypatch.setattr(sampling, "BATCH_S", 0.01)
    return RunFolder.create(tmp_path, "run")


async def eventually(reached: Callable[[], object]) -> None:
    for _ in range(500):
        if reached():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


@asynccontextmanager
async def following(
    run: RunFolder, monitors: Monitors, since_ns: int = 0, ahead_ns: int = 0
) -> AsyncIterator[tuple[Sampler, Warnings]]:
    """A sampler at work, and what it has warned of."""
    warnings: Warnings = []
    sampler = Sampler(
        [cast(Node, monitors)],
        run,
        since_ns,
        NodeClocks({"node1": ahead_ns}),
        lambda *warning: warnings.append(warning),
    )
    sampler.begin()
    yield sampler, warnings
    await sampler.end()


async def follow(
    run: RunFolder, monitors: Monitors, until: Callable[[Sampler], object], **more: int
) -> tuple[Sampler, Warnings]:
    """A sampler that followed the node until something was true of it, and was ended then."""
    async with following(run, monitors, **more) as (sampler, warnings):
        await eventually(lambda: until(sampler))
    return sampler, warnings


def reached(second: float) -> Callable[[Sampler], bool]:
    return lambda sampler: sampler.series.last_ns("node1") >= second * S


async def test_sample_of_a_newer_monitor_is_read_and_kept(run: RunFolder, tmp_path: Path) -> None:
    newer = line(1, humidity=0.4, rpc={"listening": True, "backlog": 0, "colour": "red"})
    sampler, _ = await follow(run, Monitors(tmp_path, newer + "\n"), reached(1))
    assert [one.time_ns for one in read_samples(run.path)] == [1 * S]
    assert len(sampler.series.window("node1", 0, 2 * S)) == 1


async def test_line_that_is_too_long_or_no_sample_warns_and_the_next_ones_are_read(
    run: RunFolder, tmp_path: Path
) -> None:
    text = "\n".join([line(1), "x" * (3 << 20), line(2), "{}", line(3), ""])
    _, warnings = await follow(run, Monitors(tmp_path, text), reached(3))
    assert [one.time_ns for one in read_samples(run.path)] == [1 * S, 2 * S, 3 * S]
    assert warnings[0] == ("node1", "a sample is refused: its line is longer than 524288 bytes")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"cpu_s": float("nan")}, "cpu_s: Input should be a finite number"),
        ({"node": "node2"}, "it says that it is of node 'node2'"),
        ({"memory": {"used_bytes": 1 << 70}}, "memory."),
        ({"time_ns": 1 << 62}, "its time is "),
    ],
)
async def test_line_that_cannot_be_believed_is_left_out_and_hides_no_later_one(
    run: RunFolder, tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    monitors = Monitors(tmp_path, "\n".join([line(1), line(2, **changed), line(3), ""]))
    sampler, warnings = await follow(run, monitors, reached(3))
    assert [one.time_ns for one in read_samples(run.path)] == [1 * S, 3 * S]
    assert warnings[0][1].startswith(f"a sample is refused: {reason}")
    assert sampler.series.window("node2", 0, 9 * S) == []


async def test_monitor_that_cannot_be_started_warns_and_is_tried_again(
    run: RunFolder, tmp_path: Path
) -> None:
    monitors = Monitors(tmp_path, line(1) + "\n")
    monitors.fail_first("/nowhere/ssh")
    _, warnings = await follow(run, monitors, reached(1))
    assert ("node1", "no samples: cannot start /nowhere/ssh: No such file or directory") in warnings


async def test_silent_monitor_warns_once(run: RunFolder, tmp_path: Path) -> None:
    monitors = Monitors(tmp_path)
    _, warnings = await follow(run, monitors, lambda _: len(monitors.since) > 3)
    assert warnings == [("node1", "its monitor gives no samples: the connection ended")]


async def test_node_with_another_clock_is_asked_in_its_time_and_read_in_ours(
    run: RunFolder, tmp_path: Path
) -> None:
    monitors = Monitors(tmp_path, f"{line(131)}\n{line(132)}\n")
    sampler, _ = await follow(
        run, monitors, lambda _: len(monitors.since) > 1, since_ns=100 * S, ahead_ns=30 * S
    )
    assert monitors.since[:2] == [130 * S, 132 * S + 1]
    assert [point.time_ns for point in sampler.series.window("node1", 0, 200 * S)] == [101 * S, 102 * S]
    assert [one.time_ns for one in read_samples(run.path)] == [131 * S, 132 * S], "recorded as they came"


async def test_samples_outlive_a_disk_that_is_full_for_a_moment(run: RunFolder, tmp_path: Path) -> None:
    blocked = run.path / "samples.jsonl"
    blocked.mkdir()  # as a full disk: nothing can be appended
    monitors = Monitors(tmp_path, f"{line(1)}\n{line(2)}\n")
    async with following(run, monitors) as (_, warnings):
        await eventually(lambda: [text for node, text in warnings if node is None])
        blocked.rmdir()
        await eventually(blocked.exists)
    assert [one.time_ns for one in read_samples(run.path)] == [1 * S, 2 * S]
    assert [text.partition(":")[0] for node, text in warnings if node is None] == [
        "samples wait for the disk"
    ]


async def test_samples_that_cannot_be_written_are_bounded_and_counted(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MAX_PENDING", 3)
    (run.path / "samples.jsonl").mkdir()
    text = "".join(f"{line(second)}\n" for second in range(1, 11))
    sampler, warnings = await follow(run, Monitors(tmp_path, text), reached(10))
    assert warnings[-1] == (None, "10 samples are lost: they could not be written")
    assert len(sampler.series.window("node1", 0, 99 * S)) == 10, "trials still have their figures"


async def test_samples_are_synced_beside_the_event_loop_that_times_the_tokens(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    monkeypatch.setattr(os, "fsync", lambda _: threads.append(threading.current_thread()))
    await follow(run, Monitors(tmp_path, line(1) + "\n"), lambda _: (run.path / "samples.jsonl").exists())
    assert threads
    assert threading.current_thread() not in threads
    assert [one.time_ns for one in read_samples(run.path)] == [1 * S]


class BrokenFolder(RunFolder):
    """A folder with a fault that nobody foresaw."""

    def append_samples(self, samples: Iterable[Sample]) -> None:
        raise KeyError("a fault of ours")


async def test_task_that_dies_of_a_fault_of_ours_says_so(run: RunFolder, tmp_path: Path) -> None:
    async with following(BrokenFolder(run.path), Monitors(tmp_path)) as (_, warnings):
        await eventually(lambda: warnings)
    assert (None, "sampling has stopped: KeyError('a fault of ours')") in warnings


MIB = 1 << 20


def point(
    second: float, *, used: int = 0, swapped: int = 0, faults: int = 0, received: int | None = 0
) -> Point:
    return Point(
        time_ns=int(second * S),
        used_bytes=used,
        swap_bytes=swapped,
        rpc_rss_bytes=used // 2,
        rpc_swap_bytes=swapped,
        major_faults=faults,
        received_bytes=received,
    )


def series(*points: Point, node: str = "node1") -> Series:
    made = Series()
    for one in points:
        made.add(node, one)
    return made


def test_peak_is_that_of_the_window() -> None:
    made = series(point(1, used=90), point(2, used=10), point(3, used=40), point(4, used=99))
    assert made.peaks(2 * S, 3 * S)["node1"]["used_bytes"] == 40


def test_node_without_a_sample_in_the_window_has_no_peak() -> None:
    assert series(point(1)).peaks(2 * S, 3 * S) == {}


def test_sample_that_comes_twice_counts_once() -> None:
    made = series(point(1), point(2), point(2), point(1))
    assert len(made.window("node1", 0, 9 * S)) == 2


def test_wire_bytes_are_taken_from_the_samples_around_the_load() -> None:
    made = series(
        point(1, received=100), point(2, received=150), point(3, received=900), point(4, received=950)
    )
    assert made.grown("node1", "received_bytes", int(2.2 * S), int(2.9 * S)) == 750


def test_wire_bytes_are_unknown_without_counters() -> None:
    made = series(point(1, received=None), point(2, received=None))
    assert made.grown("node1", "received_bytes", 1 * S, 2 * S) is None
    assert Series().grown("node1", "received_bytes", 1 * S, 2 * S) is None


def test_node_that_lives_off_its_swap_thrashes() -> None:
    made = series(*(point(t, swapped=1300 * MIB, faults=2000 * t) for t in range(10)))
    found = find_thrash(made.windows(["node1", "node2"], 0, 9 * S))
    assert found is not None
    assert found.failure_class is FailureClass.SWAP_THRASH
    assert found.evidence[0].source == "samples node1"
    assert "1300 MiB in swap; 2000 major faults/s" in found.evidence[0].line


def test_swap_that_is_not_read_back_is_no_thrash() -> None:
    made = series(*(point(t, swapped=1300 * MIB, faults=5) for t in range(10)))
    assert find_thrash(made.windows(["node1"], 0, 9 * S)) is None


def test_faults_without_swap_are_no_thrash() -> None:
    made = series(*(point(t, faults=2000 * t) for t in range(10)))
    assert find_thrash(made.windows(["node1"], 0, 9 * S)) is None
