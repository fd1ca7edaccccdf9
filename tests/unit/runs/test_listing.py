"""``harness runs``: which there are, which fit, which may go."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from harness.cli import main
from harness.runs.lock import inventory_holder, inventory_lock
from tests.unit.report_runs import RECORDED

DAY_NS = 86400 * 10**9


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Runs of today, yesterday (failed), a month ago, one that goes on, the example; and what is none."""
    folder = tmp_path / "reports"
    now = time.time_ns()
    for name, started, changes in (
        ("today", now, {}),
        ("yesterday", now - DAY_NS - 10**9, {"outcome": "failed", "profile": "other"}),
        ("old", now - 30 * DAY_NS, {}),
        ("going", now - 40 * DAY_NS, {"outcome": None, "ended_ns": None}),
        ("example", now - 50 * DAY_NS, {}),
    ):
        shutil.copytree(RECORDED, folder / name)
        path = folder / name / "run.json"
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"started_ns": started, "outcome": "passed"} | changes)
        )
    (folder / "notes").mkdir()
    (folder / "notes" / "run.json").write_text("{")
    return folder


def type_in(
    reports: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["harness", "runs", *arguments, "--reports", str(reports)])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((), ["today", "yesterday", "old", "going", "example"]),
        (("--outcome", "failed"), ["yesterday"]),
        (("--outcome", "cut"), ["going"]),
        (("--profile", "other"), ["yesterday"]),
        (("--since", "2d"), ["today", "yesterday"]),
        (("--model", "nobody"), []),
    ],
)
def test_runs_are_listed_newest_first_and_by_what_they_are(
    reports: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    names: list[str],
) -> None:
    code, out, _ = type_in(reports, monkeypatch, capsys, *arguments, "--json")
    assert code == 0
    assert [entry["run"] for entry in json.loads(out)] == names


def test_prune_shows_first_and_removes_when_told(
    reports: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = type_in(reports, monkeypatch, capsys, "prune", "--keep", "1", "--outcome", "passed")
    assert code == 0
    assert "would remove old" in out
    assert (reports / "old").exists()
    code, out, _ = type_in(
        reports, monkeypatch, capsys, "prune", "--older-than", "20h", "--outcome", "failed", "--yes"
    )
    assert code == 0
    assert "removed yesterday" in out
    left = sorted(path.name for path in reports.iterdir())
    assert left == ["example", "going", "notes", "old", "today"]


def test_run_that_goes_on_and_the_example_are_never_removed(
    reports: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = type_in(reports, monkeypatch, capsys, "prune", "--keep", "0", "--yes")
    assert code == 0
    assert "kept going: it is still running" in out
    assert "example" not in out
    assert (reports / "example").exists()
    assert (reports / "going").exists()
    assert not (reports / "today").exists()


def test_silent_run_is_kept_as_long_as_it_holds_its_inventory(
    reports: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("LLAMA_HARNESS_STATE", str(tmp_path / "state"))
    inventory = tmp_path / "inventory" / "hosts.yml"
    path = reports / "going" / "run.json"
    names = {"run": "going", "inventory": str(inventory)}
    path.write_text(json.dumps(json.loads(path.read_text()) | names))
    for file in path.parent.iterdir():
        os.utime(file, (0, 0))
    typed = ("prune", "--keep", "0", "--outcome", "cut", "--yes")
    with inventory_lock(inventory, "another"):
        assert inventory_holder(inventory) == f"another, pid {os.getpid()}"
    with inventory_lock(inventory, "going"):
        _, out, _ = type_in(reports, monkeypatch, capsys, *typed)
        assert "kept going: it is still running" in out
    assert inventory_holder(inventory) is None
    _, out, _ = type_in(reports, monkeypatch, capsys, *typed)
    assert "removed going" in out
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune",), "--keep"),
        (("--outcome", "odd"), "'odd'"),
        (("--since", "monday"), "--since monday: give a time"),
    ],
)
def test_wrong_filter_is_one_line(
    reports: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    code, _, err = type_in(reports, monkeypatch, capsys, *arguments)
    assert code == 1
    assert message in err
    assert len(err.splitlines()) == 1
