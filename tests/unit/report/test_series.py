"""Samples as columns: what monitors give beside memory, from lines and from parquet, and the worst of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.report.data import load_run
from harness.report.figures.timeline import pressure_figure
from harness.report.sections.pressure import fault_rates, pressures
from harness.report.series import COLUMNS, NodeSeries, read_series
from harness.runs.pack import pack
from tests.unit.report_runs import RECORDED, change_lines, copy_run

SECOND = 10**9
MIB = 1 << 20
PRESSURE = {
    "source": "cgroup", "memory_some_avg10": 12.5, "memory_full_avg10": 4.0, "memory_some_total_us": 9,
    "memory_full_total_us": 5, "io_some_avg10": 1, "io_full_avg10": 0, "io_some_total_us": 1,
    "io_full_total_us": 0,
}  # fmt: skip
GPUS = [
    {"index": n, "name": "GPU", "source": "nvml", "memory_total_bytes": 100, "memory_used_bytes": 10 + n,
     "use_percent": 50.0 + n, "power_w": None, "temperature_c": 60}
    for n in (0, 1)
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The recorded run as if its monitors had told more, one sample of node1 with pressure among them."""
    run = copy_run(tmp_path)
    seen: list[int] = []

    def tell(sample: dict[str, Any]) -> None:
        disk = {"source": "proc", "device": "sda", "read_bytes": 1, "written_bytes": 1}
        sample |= {"load1": 1.5, "disk": disk | {"read_bytes_per_s": 2e6, "written_bytes_per_s": None}}
        if sample["node"] == "node1":
            seen.append(sample["time_ns"])
            sample |= {"pressure": PRESSURE if len(seen) == 3 else None, "gpus": GPUS}

    change_lines(run, "samples", tell)
    return run


def test_lines_and_parquet_give_the_same_columns(run: Path) -> None:
    from_lines = read_series(run, [], [])
    pack(run)
    (run / "samples.jsonl").unlink()
    from_parquet = read_series(run, [], [])
    assert list(from_lines) == list(from_parquet) == ["node1", "node2"]
    for node, series in from_lines.items():
        assert sorted(series.values) == sorted(from_parquet[node].values)
        for figure, values in series.values.items():
            np.testing.assert_array_equal(values, from_parquet[node].values[figure], err_msg=figure)


def test_a_damaged_line_is_left_out_and_the_others_are_read_alike(run: Path) -> None:
    whole = read_series(run, [], [])
    with (run / "samples.jsonl").open("a") as stream:
        stream.write('{"node": "node1", "gpus": 7}\n')
    warnings: list[str] = []
    cut = read_series(run, [], warnings)
    assert warnings == ["samples.jsonl: 1 lines could not be read and are left out"]
    for node, series in whole.items():
        for figure, values in series.values.items():
            np.testing.assert_array_equal(values, cut[node].values[figure], err_msg=figure)


def test_worst_of_each_node_is_told_with_its_moment(run: Path) -> None:
    data = load_run(run)
    first, second = pressures(data)
    assert (first.memory_some, first.memory_full, first.io_some) == (12.5, 4.0, 1.0)
    assert first.worst_ns == data.samples["node1"].time_ns[2]
    assert (first.gpu_used, first.gpu_total, first.load1, first.disk_read) == (21, 200, 1.5, 2e6)
    assert first.disk_written is None
    assert second.memory_some is None
    assert first.rpc_rss is not None
    assert first.rpc_rss > 10 * MIB


def test_pressure_is_drawn_for_the_nodes_that_tell_it(run: Path) -> None:
    data = load_run(run)
    drawn = pressure_figure(data, pressures(data))
    assert drawn is not None
    assert "node1: a task waited for memory up to 12 % of the time" in drawn.wide
    assert "node2" not in drawn.wide


def test_runs_without_pressure_draw_none_and_say_so() -> None:
    data = load_run(RECORDED)
    assert pressure_figure(data, pressures(data)) is None
    assert set(data.samples["node1"].values) < set(COLUMNS.values())


def test_fault_rate_is_counted_over_ten_seconds_and_survives_a_reboot() -> None:
    times = np.arange(40, dtype=np.int64) * SECOND
    faults = np.where(np.arange(40) < 20, 0.0, 500.0)
    faults[35:] = 3.0
    rates = fault_rates(NodeSeries("node1", times, {"major_faults": faults}))
    assert rates[19] == 0
    assert rates[20] == rates[29] == 50
    assert rates[31] == 0
    assert rates.min() == 0
