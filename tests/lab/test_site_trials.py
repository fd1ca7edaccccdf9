"""Trials that hurt, on real nodes: each diagnosis is the cause, and nothing of the fault is left behind."""

import io
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.contracts.run_records import Outcome, Trial
from harness.lab.cgroup import Groups
from harness.runs.folder import read_events, read_manifest, read_trials
from harness.trials.lab import lab_of
from harness.trials.progress import RunProgress
from harness.trials.run_spec import Options
from harness.trials.runner import run_benchmark
from rich.console import Console
from tests.lab.lab_under_test import LabUnderTest
from tests.lab.readme import REPOSITORY

FAULT = {"kind": "fault", "model": "1b-q8_0", "node": "node1", "context": 512}
ENDLESS = {"fault": "freeze-backend", "moment": "generating", "expected": "gpu_driver", "deadline_s": 600}


def begin(lab: LabUnderTest, folder: Path, *trials: dict[str, Any]) -> subprocess.Popen[str]:
    """``harness run benchmark`` with these trials, in a process of its own; without any, ``--resume``."""
    profile = folder / "mine.yml"
    asked = ["--profile", str(profile)] if trials else ["--resume", "last"]
    if trials:
        profile.write_text(yaml.safe_dump({"trials": list(trials)}))
    argv = [str(REPOSITORY / ".venv/bin/harness"), "run", "benchmark", *asked]
    return subprocess.Popen(
        [*argv, "--inventory", str(lab.path), "--reports", str(folder / "reports")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def the_run(folder: Path) -> Path:
    (run,) = (folder / "reports").iterdir()
    return run


def tried(lab: LabUnderTest, folder: Path, *trials: dict[str, Any]) -> dict[str, Trial]:
    """The trials of a whole run, by fault or kind."""
    process = begin(lab, folder, *trials)
    shown, _ = process.communicate(timeout=1200)
    found = {trial.details.get("fault", trial.kind): trial for trial in read_trials(the_run(folder))}
    assert len(found) == len(trials), shown
    assert not left_of_faults(lab)
    return found


LOOK = r"""
systemctl is-active llama-rpc-server | grep -v '^active$'
ls /run/systemd/system/*/llama-fault* 2>/dev/null
nft list tables | grep llama_fault
mountpoint -q /var/cache/llama.cpp && echo mounted
grep 'State:.*stopped' /proc/$(pidof rpc-server)/status
"""


def left_of_faults(lab: LabUnderTest) -> str:
    """What a fault that was not undone would leave on node1."""
    return lab.run("node1", "sh", "-c", LOOK, check=False).stdout


def test_each_injected_fault_is_the_diagnosis(deployed: LabUnderTest, tmp_path: Path) -> None:
    found = tried(
        deployed,
        tmp_path,
        FAULT | {"fault": "kill-backend", "moment": "generating"},
        FAULT | {"fault": "kill-coordinator", "moment": "generating"},
        FAULT | {"fault": "freeze-backend", "moment": "generating"},
        FAULT | {"fault": "squeeze-memory", "moment": "idle"},
        FAULT | {"fault": "cut-link", "moment": "generating"},
        FAULT | {"fault": "small-cache-disk", "moment": "idle"},
        FAULT | {"fault": "wrong-flag", "moment": "idle"},
        FAULT | {"fault": "slow-link", "moment": "idle"},
        FAULT | {"fault": "taken-port", "moment": "idle"},
        FAULT | {"fault": "closed-port", "moment": "idle"},
        FAULT | {"fault": "starve-into-swap", "moment": "generating"},
    )
    assert {name: trial.outcome for name, trial in found.items()} == dict.fromkeys(found, Outcome.PASSED), (
        "\n".join(f"{name}: {trial.answer}" for name, trial in found.items())
    )
    assert all(trial.details["undone_ns"] > trial.details["injected_ns"] for trial in found.values())
    run = the_run(tmp_path)
    kinds = [event.kind for event in read_events(run)]
    assert kinds.count("fault") == kinds.count("fault_undone") == len(found)
    assert read_manifest(run).questions == [], "faults that were asked for answer nothing about the cluster"


@pytest.mark.parametrize("moment", ["loading", "prompt"])
def test_backend_that_is_killed_amid_a_load_or_a_prompt_is_lost(
    deployed: LabUnderTest, tmp_path: Path, moment: str
) -> None:
    trial = tried(deployed, tmp_path, FAULT | {"fault": "kill-backend", "moment": moment})["kill-backend"]
    assert trial.outcome is Outcome.PASSED, trial.answer
    assert (trial.expected, trial.details["moment"]) == ("backend_lost", moment)


def test_ctrl_c_leaves_no_fault_behind(deployed: LabUnderTest, tmp_path: Path) -> None:
    # The expected class never comes: the trial looks until it is stopped.
    process = begin(deployed, tmp_path, FAULT | ENDLESS)
    _until_injected(process, tmp_path)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=180)
    assert process.returncode == 130, shown
    assert not left_of_faults(deployed)


def test_run_that_is_killed_amid_a_fault_is_resumed_on_nodes_without_it(
    deployed: LabUnderTest, tmp_path: Path
) -> None:
    process = begin(deployed, tmp_path, FAULT | ENDLESS | {"deadline_s": 60})
    _until_injected(process, tmp_path)
    process.kill()
    process.communicate()
    assert "stopped" in left_of_faults(deployed)
    shown, _ = begin(deployed, tmp_path).communicate(timeout=600)
    assert "node1: undid what a run that was killed left there: a frozen rpc-server" in shown
    (trial,) = read_trials(the_run(tmp_path))
    assert trial.diagnosis, shown
    assert trial.diagnosis.failure_class == "backend_stalled", shown
    assert not left_of_faults(deployed)


def _until_injected(process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 300
    while not _injected(folder):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.5)


def _injected(folder: Path) -> bool:
    reports = folder / "reports"
    lines = [line for path in reports.glob("*/events.jsonl") for line in path.read_text().splitlines()]
    return any(json.loads(line)["kind"] == "fault" for line in lines)


def test_backends_of_the_lab_compute_what_the_head_computes(deployed: LabUnderTest, tmp_path: Path) -> None:
    found = tried(deployed, tmp_path, {"kind": "parity", "model": "smollm2", "context": 512})
    parity = found["parity"]
    assert parity.outcome is Outcome.PASSED, parity.answer
    assert parity.metrics["tokens_equal"] == 32
    assert (the_run(tmp_path) / "report.html").exists()


SLOW_DISK_BYTES_PER_S = 4 << 20


@pytest.fixture
def slow_swap(deployed: LabUnderTest) -> Iterator[None]:
    """node1 reads its swap as from a slow disk: a token that reads its layers takes a minute."""
    lab = lab_of(deployed.inventory)
    assert lab
    groups, group = Groups(), lab.group / "node1"
    disks = [(disk.parent / "dev").read_text().strip() for disk in Path("/sys/block").glob("*/device")]
    folder = groups.count_disks(group)
    file = folder / "blkio.throttle.read_bps_device" if folder else groups.folder("io", group) / "io.max"
    form = "{} {}" if folder else "{} rbps={}"
    for disk in disks:
        file.write_text(form.format(disk, SLOW_DISK_BYTES_PER_S))
    yield
    for disk in disks:
        file.write_text(form.format(disk, 1 << 50 if folder else "max"))


@pytest.mark.usefixtures("slow_swap")
async def test_starved_backend_that_gets_nowhere_ends_its_trial_with_the_figures(
    deployed: LabUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness waits a minute; fifteen seconds are enough to see it."""
    monkeypatch.setattr("harness.trials.load_generator.thrash_guard.NO_PROGRESS_S", 15.0)
    load = {"kind": "load", "model": "1b-q8_0", "nodes": 2, "context": 512}
    asked = {"kind": "inference", "model": "1b-q8_0", "prompt_tokens": 64, "generated_tokens": 64}
    profile = tmp_path / "starved.yml"
    starved = load | {"starve": {"node": "node1", "memory": "160M"}}
    profile.write_text(yaml.safe_dump({"trials": [load, starved, asked]}))
    with RunProgress(Console(file=io.StringIO())) as progress:
        result = await run_benchmark(Options(str(profile), deployed.path, tmp_path / "reports"), progress)
    ended = [t for t in result.trials if t.diagnosis and t.diagnosis.failure_class == "swap_thrash"]
    assert ended, "\n".join(f"{trial.id}: {trial.answer}" for trial in result.trials)
    told = [f"{one.source}: {one.line}" for one in ended[0].diagnosis.evidence] if ended[0].diagnosis else []
    assert any(line.startswith("samples node1: rpc-server had up to") for line in told)
    assert told[-1] == "trial: ended early: no progress within 15 s"
