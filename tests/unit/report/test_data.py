"""Samples as columns, from lines and from parquet, and their worst values."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.errors import HarnessError
from harness.report.data import COLUMNS, NodeSeries, load_run, read_series
from harness.report.figures.timeline import pressure_figure
from harness.report.sections.memory import major_fault_rates, pressure_rows
from harness.report.sections.method import method_section
from harness.runs.tables import pack
from tests.node_samples import node_sample
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


def sample_line(**figures: object) -> str:
    """A line of samples.jsonl, as no monitor of today writes it."""
    return json.dumps(json.loads(node_sample(1).model_dump_json()) | figures)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The recorded run with more figures in its samples; one sample of node1 has pressure."""
    run = copy_run(tmp_path)
    times: list[int] = []

    def add(sample: dict[str, Any]) -> None:
        disk = {"source": "proc", "device": "sda", "read_bytes": 1, "written_bytes": 1}
        sample |= {"load1": 1.5, "disk": disk | {"read_bytes_per_s": 2e6, "written_bytes_per_s": None}}
        if sample["node"] == "node1":
            times.append(sample["time_ns"])
            sample |= {"pressure": PRESSURE if len(times) == 3 else None, "gpus": GPUS}

    change_lines(run, "samples", add)
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


@pytest.mark.parametrize(
    "damaged",
    [
        '{"node": "node1", "gpus": 7}',
        "[" * 100_000,
        sample_line(load1=float("nan")),
        sample_line(load1=10**400),
        sample_line(clock_offset_s=float("-inf")),
        sample_line(time_ns=1 << 70),
    ],
    ids=["no sample", "nested deep", "a NaN", "a huge figure", "an infinity", "a time of no clock"],
)
def test_a_damaged_line_is_left_out_and_the_others_are_read_alike(run: Path, damaged: str) -> None:
    whole = read_series(run, [], [])
    with (run / "samples.jsonl").open("a") as stream:
        stream.write(f"{damaged}\n")
    warnings: list[str] = []
    cut = read_series(run, [], warnings)
    assert len(warnings) == 1
    assert "1 line" in warnings[0]
    for node, series in whole.items():
        for figure, values in series.values.items():
            np.testing.assert_array_equal(values, cut[node].values[figure], err_msg=figure)


def test_worst_of_each_node_has_its_time(run: Path) -> None:
    data = load_run(run)
    first, second = pressure_rows(data)
    highest = first.highest
    assert (highest["memory_some"], highest["memory_full"], highest["io_some"]) == (12.5, 4.0, 1.0)
    assert first.worst_ns == data.samples["node1"].time_ns[2]
    assert (highest["gpu_used"], highest["gpu_total"], highest["load1"]) == (21, 200, 1.5)
    assert (highest["disk_read"], highest["disk_written"]) == (2e6, None)
    assert second.highest["memory_some"] is None
    assert (highest["rpc_rss"] or 0) > 10 * MIB


def test_pressure_is_drawn_for_the_nodes_that_report_it(run: Path) -> None:
    data = load_run(run)
    drawn = pressure_figure(data, pressure_rows(data))
    assert drawn is not None
    assert re.search(r"node1: [^;<]*12 %", drawn.wide)
    assert "node2" not in drawn.wide


def test_runs_without_pressure_have_no_pressure_figure() -> None:
    data = load_run(RECORDED)
    assert pressure_figure(data, pressure_rows(data)) is None
    assert set(data.samples["node1"].values) < set(COLUMNS.values())


def test_fault_rate_is_counted_over_ten_seconds_and_survives_a_reboot() -> None:
    times = np.arange(40, dtype=np.int64) * SECOND
    faults = np.where(np.arange(40) < 20, 0.0, 500.0)
    faults[35:] = 3.0
    rates = major_fault_rates(NodeSeries("node1", times, {"major_faults": faults}))
    assert rates[19] == 0
    assert rates[20] == rates[29] == 50
    assert rates[31] == 0
    assert rates.min() == 0


def test_a_line_cut_short_is_a_warning_and_the_rest_is_read(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    for table in ("trials", "samples", "events"):
        path = run / f"{table}.jsonl"
        path.write_bytes(path.read_bytes()[:-40])
    cut = load_run(run)
    assert len(cut.trials) == 9
    assert len([w for w in cut.warnings if "incomplete" in w]) == 3
    assert sum(len(s.time_ns) for s in cut.samples.values()) > 100
    assert any("incomplete" in w for w in method_section(cut)["warnings"])


def test_lines_newer_than_their_pack_are_read(tmp_path: Path) -> None:
    run = copy_run(tmp_path)
    pack(run)
    path = run / "samples.jsonl"
    before = sum(len(s.time_ns) for s in load_run(run).samples.values())
    last = json.loads(path.read_text().splitlines()[-1])
    last["time_ns"] += 10**9
    with path.open("a") as stream:
        stream.write(json.dumps(last) + "\n")
    assert sum(len(s.time_ns) for s in load_run(run).samples.values()) == before + 1


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="no run folder at"):
        load_run(tmp_path / "nothing")
    with pytest.raises(HarnessError, match=r"no run\.json|not a run folder"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text('{"run": 1}')
    with pytest.raises(HarnessError, match="cannot be read"):
        load_run(tmp_path)
