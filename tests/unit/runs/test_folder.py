"""The run's folder: nothing that had finished is lost, whatever ends the run."""

import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from harness.contracts.run_records import Event, Request, RunManifest
from harness.errors import HarnessError
from harness.runs.folder import (
    RunFolder,
    read_events,
    read_manifest,
    read_requests,
    read_samples,
    read_trials,
    run_name,
)
from tests.unit.run_records import sample, trial


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
        from harness.runs.folder import RunFolder
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


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """A disk that has room for so many bytes a file: what goes beyond is written in part, then refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_append_that_fails_leaves_the_file_as_it_was_and_can_be_repeated(run: RunFolder) -> None:
    run.append_samples([sample(1)])
    lines = run.path / "samples.jsonl"
    before = lines.read_bytes()
    with (
        files_no_longer_than(len(before) + 700),
        pytest.raises(HarnessError, match=r"cannot write .*samples\.jsonl: File too large"),
    ):
        run.append_samples([sample(2), sample(3), sample(4)])
    assert lines.read_bytes() == before
    run.append_samples([sample(2), sample(3), sample(4)])
    assert list(read_samples(run.path)) == [sample(1), sample(2), sample(3), sample(4)]
