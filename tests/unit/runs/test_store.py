"""The run's folder: nothing that had finished is lost, whatever ends the run."""

import json
import os
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path

import pytest
from harness.contracts.run_records import Event, Request, RunManifest
from harness.errors import HarnessError
from harness.monitor.sample import Memory, Network, Process, Sample, Source
from harness.runs.lock import inventory_lock
from harness.runs.pack import pack
from harness.runs.read import (
    read_events,
    read_manifest,
    read_requests,
    read_samples,
    read_table,
    read_trials,
)
from harness.runs.store import RunFolder, run_name
from tests.unit.run_records import trial

MIB = 1 << 20


def sample(second: int, node: str = "node1", swap: int = 0) -> Sample:
    memory = Memory(
        source=Source.CGROUP,
        total_bytes=1024 * MIB,
        available_bytes=512 * MIB,
        used_bytes=(100 + second) * MIB,
        cache_bytes=0,
        swap_total_bytes=MIB,
        swap_used_bytes=swap,
        major_faults=second,
    )
    rpc = Process(pid=7, name="rpc-server", rss_bytes=50 * MIB, swap_bytes=swap, cpu_s=1.0)
    network = Network(interface="host0", received_bytes=1000 * second, sent_bytes=0)
    return Sample(
        time_ns=second * 10**9, node=node, memory=memory, cpu_s=1.5, processes=[rpc], network=network
    )


def manifest(run: str) -> RunManifest:
    return RunManifest(
        run=run,
        profile="smoke",
        profile_text="",
        inventory="/i",
        started_ns=1,
        harness_version="0",
        command=["harness"],
    )


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "20261123T211900Z-smoke")


def test_name_is_utc_and_profile() -> None:
    assert run_name(datetime(2026, 11, 23, 21, 19, 0, tzinfo=UTC), "smoke") == "20261123T211900Z-smoke"


def test_records_come_back_as_written(run: RunFolder) -> None:
    request = Request(trial="1", index=1, route="pool", model="m", sent_ns=5, token_ns=[6, 7])
    run.write_manifest(manifest(run.path.name))
    run.append_event(Event(time_ns=1, kind="run_start"))
    run.append_trial(trial("a"))
    run.append_request(request)
    run.append_samples([sample(1), sample(2)])
    assert read_manifest(run.path).run == run.path.name
    assert [event.kind for event in read_events(run.path)] == ["run_start"]
    assert [one.id for one in read_trials(run.path)] == ["a"]
    assert list(read_requests(run.path)) == [request]
    assert list(read_samples(run.path)) == [sample(1), sample(2)]


def test_records_are_on_disk_when_the_call_returns(run: RunFolder) -> None:
    run.append_trial(trial("a"))
    assert [one.id for one in read_trials(run.path)] == ["a"]


def test_line_cut_short_by_a_kill_is_left_out(run: RunFolder) -> None:
    run.append_trial(trial("a"))
    run.append_trial(trial("b"))
    lines = run.path / "trials.jsonl"
    os.truncate(lines, lines.stat().st_size - 20)
    assert [one.id for one in read_trials(run.path)] == ["a"]


def test_appending_after_a_kill_drops_the_cut_line(run: RunFolder) -> None:
    run.append_trial(trial("a"))
    run.append_trial(trial("b"))
    run.close()
    lines = run.path / "trials.jsonl"
    os.truncate(lines, lines.stat().st_size - 20)
    again = RunFolder(run.path)
    again.append_trial(trial("c"))
    assert [one.id for one in read_trials(run.path)] == ["a", "c"]


def test_damage_before_the_last_line_is_an_error(run: RunFolder) -> None:
    run.append_trial(trial("a"))
    with (run.path / "trials.jsonl").open("ab") as file:
        file.write(b"{garbage\n")
    with pytest.raises(HarnessError, match=r"trials\.jsonl:2 is not JSON"):
        list(read_trials(run.path))


def test_killed_writer_leaves_every_finished_trial(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parents[3])!r})
        from tests.unit.run_records import trial
        from harness.runs.store import RunFolder
        run = RunFolder.create(Path({str(tmp_path)!r}), "killed")
        for n in range(3):
            run.append_trial(trial(str(n)))
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == -9
    assert [one.id for one in read_trials(tmp_path / "killed")] == ["0", "1", "2"]


def test_manifest_is_replaced_whole(run: RunFolder) -> None:
    run.write_manifest(manifest("first"))
    run.write_manifest(manifest("second"))
    assert read_manifest(run.path).run == "second"
    assert not list(run.path.glob(".*"))


def test_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"not a run folder: it has no run\.json"):
        read_manifest(tmp_path)


def test_an_earlier_run_is_never_written_into(run: RunFolder) -> None:
    with pytest.raises(HarnessError, match="is there already"):
        RunFolder.create(run.path.parent, run.path.name)


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
    before = {table: read_table(run.path, table) for table in ("trials", "requests", "samples")}
    packed = pack(run.path)
    assert {path.name for path in packed} == {"trials.parquet", "requests.parquet", "samples.parquet"}
    assert not list(run.path.glob(".*"))
    for table, frame in before.items():
        scalars = [name for name in frame if name not in ("token_ns", "itl_s")]
        assert read_table(run.path, table)[scalars].astype(str).equals(frame[scalars].astype(str))
    trials, requests, samples = (before[table] for table in ("trials", "requests", "samples"))
    assert trials["metrics.load_s"].dropna().tolist() == [1.5]
    assert requests[["ttft_s", "tpot_s", "server.prompt_n"]].iloc[0].tolist() == [1.0, 2.0, 35]
    assert [list(gaps) for gaps in read_table(run.path, "requests")["itl_s"]] == [[2.0]]
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
    before, row = read_table(run.path, "samples").to_dict("records")
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
    assert read_table(run.path, "samples").empty


def test_table_that_cannot_be_written_is_named_and_leaves_nothing(run: RunFolder) -> None:
    run.append_trial(trial("a"))
    (run.path / "trials.parquet").mkdir()  # stands in the way, as a full disk would
    with pytest.raises(HarnessError, match=r"cannot write .*trials\.parquet.*the run is whole without it"):
        pack(run.path)
    assert not list(run.path.glob(".*"))


def test_lock_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLAMA_HARNESS_STATE", str(tmp_path / "file"))
    with pytest.raises(HarnessError, match=r"cannot make .*run\.lock"), inventory_lock(tmp_path, "run-1"):
        pass


def test_second_run_on_an_inventory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_HARNESS_STATE", str(tmp_path))
    inventory = tmp_path / "mine"
    inventory.mkdir()
    with (
        inventory_lock(inventory, "run-1"),
        pytest.raises(HarnessError, match="taken by another run \\(run-1, pid"),
        inventory_lock(inventory, "run-2"),
    ):
        pass
    with inventory_lock(inventory, "run-3"):
        pass


def test_runs_on_different_inventories_go_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_HARNESS_STATE", str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with inventory_lock(tmp_path / "one", "a"), inventory_lock(tmp_path / "two", "b"):
        pass
