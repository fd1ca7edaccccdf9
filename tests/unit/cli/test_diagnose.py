"""``harness diagnose``: logs, runs and what is neither."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness.cli import app, diagnose
from harness.errors import HarnessError
from typer.testing import CliRunner

REPOSITORY = Path(__file__).parents[3]
LOGS = REPOSITORY / "tests" / "data" / "logs"
EXAMPLE = REPOSITORY / "reports" / "example"


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["diagnose", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def as_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


def test_json_of_a_log_has_the_promised_fields() -> None:
    result = as_json(str(LOGS / "out_of_memory.log"), "--exit-status", "1")
    assert set(result) == {"class", "evidence", "confidence", "ruled_out", "advice"}
    assert (result["class"], result["confidence"]) == ("out_of_memory", "certain")
    assert result["evidence"][0]["source"] == "out_of_memory.log:128"


def test_text_names_class_line_and_advice() -> None:
    lines = run(str(LOGS / "backend_lost.log"), "--exit-status", "134").splitlines()
    assert lines[1] == "  backend_lost (certain)"
    assert lines[2].startswith("  because backend_lost.log:")
    assert any(line.startswith("  do      ") for line in lines)


def test_journal_decides_what_a_killed_log_cannot(tmp_path: Path) -> None:
    log, journal = str(LOGS / "killed.log"), tmp_path / "node.journal"
    assert as_json(log, "--exit-status", "137")["class"] == "unknown"
    journal.write_text("node1 kernel: Out of memory: Killed process 77 (llama-server) total-vm:1kB\n")
    result = as_json(log, "--exit-status", "137", "--journal", str(journal))
    assert (result["class"], result["evidence"][0]["source"]) == ("oom_killed", "journal node.journal")


def test_kill_of_another_process_decides_nothing(tmp_path: Path) -> None:
    journal = tmp_path / "node.journal"
    journal.write_text("node1 kernel: Out of memory: Killed process 77 (postgres) total-vm:1kB\n")
    result = as_json(str(LOGS / "killed.log"), "--exit-status", "137", "--journal", str(journal))
    assert result["class"] == "unknown"


def test_log_of_a_coordinator_without_its_backends_is_not_distributed() -> None:
    assert as_json(str(LOGS / "not_distributed.log"))["class"] == "not_distributed"
    assert as_json(str(LOGS / "local.log"))["class"] == "unknown"


def test_run_is_diagnosed_again_from_what_it_stored() -> None:
    result = as_json(str(EXAMPLE))
    assert all(diagnosis["class"] == diagnosis["recorded"] for diagnosis in result)
    assert {diagnosis["class"] for diagnosis in result} == {"stopped", "not_distributed", "swap_thrash"}
    assert all(diagnosis["trial"] for diagnosis in result)


def test_log_of_a_run_decides_anew(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(EXAMPLE, folder)
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    trial = next(line for line in lines if (line["coordinator"] or {}).get("exit"))
    trial["coordinator"] |= {"signals": [], "diagnosis": None}
    trial["coordinator"]["exit"] |= {"code": None, "signal": 6}
    trial["diagnosis"] = None
    (folder / "trials.jsonl").write_text(json.dumps(trial) + "\n")
    shutil.copy(LOGS / "backend_lost.log", folder / "logs" / f"{trial['coordinator']['start_id']}.log")
    (result,) = as_json(str(folder))
    assert (result["trial"], result["class"], result["recorded"]) == (trial["id"], "backend_lost", None)


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("nothing-of-the-kind", (), "is no log, no run under reports/ and no unit of ours"),
        ("", (), "is"),
        ("x" * 5000, (), "is no log"),
        ("a\0b", (), "is no log"),
        (str(REPOSITORY / "docs"), (), "a folder without run.json"),
        (str(LOGS / "killed.log"), ("--exit-status", "many"), "'many' is no exit status"),
        (str(LOGS / "killed.log"), ("--journal", "/absent"), "cannot read /absent"),
        (str(EXAMPLE), ("--exit-status", "1"), "belong to a log"),
        ("node9:llama-rpc-server", ("--inventory", "/absent"), "no inventory at /absent"),
    ],
)
def test_bad_input_is_one_line(what: str, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(HarnessError, match=message) as raised:
        CliRunner().invoke(app, ["diagnose", what, *options], catch_exceptions=False)
    assert "\n" not in str(raised.value)


def test_terminal_is_not_driven_by_what_a_log_holds(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"\x1b]0;title\x07GGML_ASSERT(\x1b[2Jx) failed\n")
    assert "\x1b" not in run(str(log))
    assert "\x07" not in run(str(log))


def test_unit_names_are_told_from_logs_and_runs() -> None:
    assert diagnose._UNIT.fullmatch("node1:llama-rpc-server")
    assert diagnose._UNIT.fullmatch("llama-router.service")
    assert diagnose._UNIT.fullmatch("llama-rpc-server.log") is None
