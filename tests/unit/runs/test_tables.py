"""Packed tables hold what the lines hold, or none is written."""

import json
from pathlib import Path

import pandas as pd
import pytest
from harness.contracts.run_records import Request
from harness.errors import HarnessError
from harness.monitor.sample import Sample
from harness.runs.folder import (
    RunFolder,
    read_lines,
)
from harness.runs.tables import flatten, pack
from tests.unit.run_records import MIB, sample, trial


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "20261123T211900Z-smoke")


def test_packed_tables_equal_the_lines(run: RunFolder) -> None:
    run.append_trial(trial("a", load_s=1.5))
    run.append_trial(trial("b"))
    run.append_request(
        Request(
            trial="a",
            index=1,
            route="pool",
            model="m",
            sent_ns=0,
            token_ns=[10**9, 3 * 10**9],
            completion_tokens=2,
            server={"prompt_n": 35},
        )
    )
    run.append_samples(sample(second, node) for second in range(3) for node in ("node1", "node2"))
    packed = pack(run.path)
    assert {path.name for path in packed} == {"trials.parquet", "requests.parquet", "samples.parquet"}
    assert not list(run.path.glob(".*"))
    tables = {path.stem: pd.read_parquet(path) for path in packed}
    for table, frame in tables.items():
        rows = [flatten(table, line) for line in read_lines(run.path / f"{table}.jsonl")]
        scalars = [name for name in frame if name not in ("token_ns", "itl_s")]
        assert frame[scalars].astype(str).equals(pd.DataFrame(rows)[scalars].astype(str))
    trials, requests, samples = (tables[table] for table in ("trials", "requests", "samples"))
    assert trials["metrics.load_s"].dropna().tolist() == [1.5]
    assert requests[["ttft_s", "tpot_s", "server.prompt_n"]].iloc[0].tolist() == [1.0, 2.0, 35]
    assert [list(gaps) for gaps in requests["itl_s"]] == [[2.0]]
    assert samples["memory.used_bytes"].tolist()[:2] == [100 * MIB, 100 * MIB]
    assert samples["rpc_rss_bytes"].tolist()[0] == 50 * MIB


WHOLE = {
    "pressure": {
        "source": "cgroup",
        **{f"{kind}_avg10": 1.5 for kind in ("memory_some", "memory_full", "io_some", "io_full")},
        **{f"{kind}_total_us": 7 for kind in ("memory_some", "memory_full", "io_some", "io_full")},
    },
    "disk": {
        "source": "proc",
        "device": "sda,sdb",
        "read_bytes": 5,
        "written_bytes": 6,
        "read_bytes_per_s": 2.5,
    },
    "gpus": [
        {
            "index": 0,
            "name": "a",
            "source": "nvml",
            "memory_used_bytes": 3,
            "use_percent": 90,
            "power_w": 200.5,
        },
        {"index": 1, "name": "b", "source": "nvml", "memory_used_bytes": 4, "use_percent": 10},
        {"index": 2, "name": "c", "source": "nvml", "problem": "GPU is lost"},
    ],
    "kernel": {
        "log": True,
        "oom_kills": 2,
        "last_oom": "Killed process 7 (rpc-server)",
        "xids": [{"time_ns": 1, "pci": "0000:65:00", "code": 79, "line": "NVRM: Xid"}],
    },
    "build": {"build": 6751, "commit": "01d2bdc2b", "sha256": "ab"},
    "load1": 0.5,
    "clock_offset_s": -0.001,
}


def test_everything_a_sample_can_say_is_in_its_packed_row(run: RunFolder) -> None:
    whole = Sample.model_validate(sample(1).model_dump() | WHOLE)
    run.append_samples([sample(0), whole])
    pack(run.path)
    before, row = pd.read_parquet(run.path / "samples.parquet").to_dict("records")
    assert row["pressure.memory_full_avg10"] == 1.5
    assert (row["disk.device"], row["disk.read_bytes_per_s"]) == ("sda,sdb", 2.5)
    assert (row["gpu_memory_used_bytes"], row["gpu_use_percent"], row["gpu_power_w"]) == (7, 90, 200.5)
    assert (row["kernel.oom_kills"], row["kernel.last_oom"]) == (2, "Killed process 7 (rpc-server)")
    assert json.loads(row["kernel.xids"])[0]["code"] == 79
    assert [gpu["name"] for gpu in json.loads(row["gpus"])] == ["a", "b", "c"]
    assert (row["build.build"], row["load1"], row["clock_offset_s"]) == (6751, 0.5, -0.001)
    assert before["time_ns"] == 0
    assert before["gpu_memory_used_bytes"] != before["gpu_memory_used_bytes"]  # not known: NaN, never zero


def test_tables_without_records_are_not_packed(run: RunFolder) -> None:
    run.append_trial(trial("a"))
    assert [path.name for path in pack(run.path)] == ["trials.parquet"]


def test_table_that_cannot_be_written_is_named_and_leaves_nothing(run: RunFolder) -> None:
    run.append_trial(trial("a"))
    (run.path / "trials.parquet").mkdir()  # stands in the way, as a full disk would
    with pytest.raises(HarnessError, match=r"cannot write .*trials\.parquet.*the run is whole without it"):
        pack(run.path)
    assert not list(run.path.glob(".*"))


def test_value_that_no_table_holds_is_an_error_of_one_line_and_the_other_tables_are_packed(
    run: RunFolder,
) -> None:
    run.append_trial(trial("a", load_s=1.5))
    run.append_request(Request(trial="a", index=1, route="pool", model="m", sent_ns=1 << 70))
    run.append_samples([sample(1)])
    with pytest.raises(HarnessError, match=r"cannot pack .*requests\.jsonl"):
        pack(run.path)
    assert {path.stem for path in run.path.glob("*.parquet")} == {"trials", "samples"}
    assert not list(run.path.glob(".*"))


@pytest.mark.parametrize("line", ['{"model": "m"}', "[]", "7"])
def test_record_of_another_shape_is_an_error_of_one_line(run: RunFolder, line: str) -> None:
    (run.path / "requests.jsonl").write_text(f"{line}\n")
    with pytest.raises(HarnessError, match=r"requests\.jsonl"):
        pack(run.path)
