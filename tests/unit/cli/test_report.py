"""``harness report`` and ``harness compare``: which runs they take, and when a comparison fails."""

import os
from html import unescape
from pathlib import Path

import pytest
from harness.cli import main
from harness.cli.options import find_run
from harness.errors import HarnessError
from harness.runs.compare import compare, read_figures
from tests.unit.report_runs import RECORDED, change_manifest, later_run, slow_down


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


def type_in(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["harness", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_page_of_two_runs_holds_every_change_and_ci_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = later_run(tmp_path, slow_down)
    page = tmp_path / "page.html"
    typed = ["compare", str(tmp_path / RECORDED.name), str(later), "--output", str(page)]
    assert type_in(monkeypatch, *typed) == 0
    text = unescape(page.read_text())
    for change in compare([read_figures(tmp_path / RECORDED.name), read_figures(later)]).changes:
        assert change.what in text
        assert change.figure.label in text
    capsys.readouterr()
    assert type_in(monkeypatch, *typed, "--fail-if-slower", "5%") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"worse than {RECORDED.name}: inference smollm2-sharded-inference-48x3 " in line
    assert "decode by 200%" in line
    assert "TTFT" not in line, "the first tokens came as before"
    assert type_in(monkeypatch, *typed, "--fail-if-slower", "250%") == 0


def test_ci_is_not_told_that_all_is_well_where_nothing_could_be_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = later_run(tmp_path)
    typed = [
        str(tmp_path / RECORDED.name),
        str(later),
        "--output",
        str(tmp_path / "p"),
        "--fail-if-slower",
        "5%",
    ]
    for run in (tmp_path / RECORDED.name, later):
        (run / "requests.jsonl").write_text("")
    assert type_in(monkeypatch, "compare", *typed) == 1
    assert "enough values" in capsys.readouterr().err


def test_trial_that_the_same_profile_did_not_get_to_is_lost_and_ci_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = later_run(tmp_path)
    trials = later / "trials.jsonl"
    trials.write_text("".join(trials.read_text().splitlines(keepends=True)[:1]))
    typed = [str(tmp_path / RECORDED.name), str(later), "--output", str(tmp_path / "p")]
    assert type_in(monkeypatch, "compare", *typed, "--fail-if-slower", "5%") == 1
    assert "(not tried, was 1 passed)" in capsys.readouterr().err
    change_manifest(later, lambda content: content.update(profile="p", profile_text="another"))
    found = compare([read_figures(tmp_path / RECORDED.name), read_figures(later)])
    assert {one.after for one in found.outcomes} == {"not tried"}
    assert not any(one.worse for one in found.outcomes), "another profile may ask for less"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}"], "at least two runs"),
        (["{run}", "{run}"], "cannot be compared with itself"),
        (["{run}", "nowhere"], "no run 'nowhere'"),
        (["{run}", "{run}", "--fail-if-slower", "much"], "--fail-if-slower much: give a percentage"),
    ],
)
def test_wrong_comparison_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = [argument.format(run=RECORDED) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["harness", "compare", *typed])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
