"""``harness report``: which run it takes, and what it says where there is none."""

import os
from pathlib import Path

import pytest
from harness.cli.report import find_run
from harness.errors import HarnessError


def make_run(reports: Path, name: str, age_s: int) -> Path:
    folder = reports / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    os.utime(folder / "run.json", (1_000_000 - age_s, 1_000_000 - age_s))
    return folder


def test_latest_is_the_run_written_last(tmp_path: Path) -> None:
    new = make_run(tmp_path, "20260102T000000Z-smoke", 10)
    make_run(tmp_path, "example", 500)
    assert find_run("latest", tmp_path) == new


def test_a_name_stands_for_a_folder_under_reports(tmp_path: Path) -> None:
    run = make_run(tmp_path, "20260102T000000Z-smoke", 0)
    assert find_run(run.name, tmp_path) == run
    assert find_run(str(run), tmp_path / "elsewhere") == run


def test_an_unknown_run_is_named_with_the_ones_there_are(tmp_path: Path) -> None:
    make_run(tmp_path, "20260102T000000Z-smoke", 0)
    with pytest.raises(HarnessError, match=r"no run 'nope'.*20260102T000000Z-smoke"):
        find_run("nope", tmp_path)
    with pytest.raises(HarnessError, match="harness run benchmark"):
        find_run("latest", tmp_path / "nothing")
