"""Peaks, bytes over the wire and thrash, from node samples."""

from harness.contracts.diagnosis import FailureClass
from harness.diagnosis.node_conditions import find_thrash
from harness.trials.load_generator.samples import Point, Series

S = 10**9
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
