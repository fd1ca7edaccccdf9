"""What is kept of a run that was cut short, wherever the cut was."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness.contracts.run_records import NodeFacts, Outcome, Request, RunManifest, Trial
from harness.errors import HarnessError
from harness.runs.folder import RunFolder, read_manifest, read_requests, read_trials
from harness.trials.profile.profile import Profile
from harness.trials.profile.steps import PinStep, PoolStep
from harness.trials.resume import (
    Unfinished,
    check_same_cluster,
    drop_unfinished,
    earlier_runs,
    may_have_left_a_fault,
    read_unfinished,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

STEPS = Profile(trials=[PoolStep(kind="pool", model="m")] * 3)


def trial(name: str, outcome: Outcome = Outcome.PASSED) -> Trial:
    return Trial(id=name, kind="pool", model="m", started_ns=0, ended_ns=1, outcome=outcome, answer="")


def request(name: str) -> Request:
    return Request(trial=name, index=1, route="pool", model="m", sent_ns=0)


def cut_short(reports: Path, run: str = "20260101T000000Z-mine", outcome: Outcome | None = None) -> RunFolder:
    """A run of three trials that was killed in the second."""
    folder = RunFolder.create(reports, run)
    folder.write_manifest(
        RunManifest(
            run=run,
            profile="mine",
            profile_text="",
            inventory=str(reports / "inventory"),
            started_ns=0,
            harness_version="0",
            command=["harness"],
            outcome=outcome,
            steps=STEPS.model_dump(mode="json"),
            nodes=[NodeFacts(name="a", address="10.0.0.1", groups=[], build=1, binaries={"rpc-server": "x"})],
        )
    )
    folder.append_request(request("01-m-pool"))
    folder.append_trial(trial("01-m-pool"))
    folder.append_request(request("02-m-pool"))
    return folder


def last(reports: Path, inventory: str = "inventory") -> Unfinished:
    return resumed(reports, "last", inventory)


def resumed(reports: Path, name: str, inventory: str = "inventory") -> Unfinished:
    path = reports / inventory
    return read_unfinished(name, reports, path, earlier_runs(reports, path))


def test_newest_run_of_the_inventory_is_resumed_unless_it_ended(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match="nothing to resume"):
        last(tmp_path)
    cut_short(tmp_path)
    assert last(tmp_path).manifest.run == "20260101T000000Z-mine"
    cut_short(tmp_path, "20260102T000000Z-mine", Outcome.PASSED)
    with pytest.raises(HarnessError, match="nothing to resume"):
        last(tmp_path)


@pytest.mark.parametrize(
    ("kind", "outcome", "events", "looked_for"),
    [
        ("fault", None, [], True),
        ("fault", Outcome.INTERRUPTED, ["fault", "fault_undone"], True),
        ("fault", Outcome.FAILED, ["fault", "fault_undone", "fault", "warning"], True),
        ("fault", Outcome.FAILED, ["fault", "fault_undone"], False),
        ("fault", Outcome.PASSED, [], False),
        ("load", None, [], False),
    ],
)
def test_faults_are_looked_for_after_a_run_that_may_have_left_one(
    tmp_path: Path, kind: str, outcome: Outcome | None, events: list[str], looked_for: bool
) -> None:
    inventory = tmp_path / "inventory"
    assert not may_have_left_a_fault(earlier_runs(tmp_path, inventory))
    folder = cut_short(tmp_path, outcome=outcome)
    manifest = read_manifest(folder.path)
    folder.write_manifest(manifest.model_copy(update={"steps": {"trials": [{"kind": kind}]}}))
    (folder.path / "events.jsonl").write_text(
        "".join(json.dumps({"time_ns": 1, "kind": one}) + "\n" for one in events)
    )
    assert may_have_left_a_fault(earlier_runs(tmp_path, inventory)) is looked_for


def test_finished_trials_stay_and_the_cut_one_begins_anew(tmp_path: Path) -> None:
    folder = cut_short(tmp_path)
    folder.append_trial(trial("02-m-pool", Outcome.INTERRUPTED))
    run = last(tmp_path)
    assert [one.id for one in run.done] == ["01-m-pool"]
    assert run.profile == STEPS
    drop_unfinished(run)
    assert [one.id for one in read_trials(folder.path)] == ["01-m-pool"]
    assert [one.trial for one in read_requests(folder.path)] == ["01-m-pool"]


def test_run_recorded_with_keys_that_are_gone_goes_on_without_them(tmp_path: Path) -> None:
    folder = cut_short(tmp_path)
    manifest = read_manifest(folder.path)
    gone = {
        "node_sets": {"a": ["b"]},
        "seed": 5,
        "deadline_s": 60.0,
        "stop_when": {"failed": 2, "classes": []},
    }
    folder.write_manifest(manifest.model_copy(update={"steps": {**manifest.steps, **gone}}))
    assert last(tmp_path).profile == STEPS


@pytest.mark.parametrize("outcome", [Outcome.PASSED, Outcome.FAILED])
def test_run_that_ended_cannot_be_resumed(tmp_path: Path, outcome: Outcome) -> None:
    cut_short(tmp_path, outcome=outcome)
    with pytest.raises(HarnessError, match=f"has ended \\({outcome}\\)"):
        resumed(tmp_path, "20260101T000000Z-mine")


def test_run_of_another_inventory_is_refused_with_the_right_one(tmp_path: Path) -> None:
    cut_short(tmp_path)
    with pytest.raises(HarnessError, match=f"resume it with --inventory {tmp_path / 'inventory'}"):
        resumed(tmp_path, "20260101T000000Z-mine", "elsewhere")
    with pytest.raises(HarnessError, match="nothing to resume"):
        last(tmp_path, "elsewhere")


def test_cluster_with_another_binary_or_node_is_refused(tmp_path: Path) -> None:
    cut_short(tmp_path)
    run = last(tmp_path)
    (node,) = run.manifest.nodes
    check_same_cluster(run, {"a": node})
    with pytest.raises(HarnessError, match=r"a has another llama\.cpp"):
        check_same_cluster(run, {"a": node.model_copy(update={"binaries": {"rpc-server": "y"}})})
    with pytest.raises(HarnessError, match=r"other nodes \(b\)"):
        check_same_cluster(run, {"a": node, "b": node})


def test_run_stopped_by_hand_is_the_last_to_resume_too(tmp_path: Path) -> None:
    cut_short(tmp_path, outcome=Outcome.INTERRUPTED)
    assert last(tmp_path).manifest.run == "20260101T000000Z-mine"


def test_run_of_two_pins_goes_on_with_the_one_it_had_put_up(tmp_path: Path) -> None:
    cut_short(tmp_path)
    run = last(tmp_path)
    (node,) = run.manifest.nodes
    pin, pool = PinStep(kind="pin", model="m", build=2), PoolStep(kind="pool", model="m")
    other = node.model_copy(update={"build": 2, "binaries": {"rpc-server": "y"}})
    changed = replace(run, profile=Profile(trials=[pin, pool]))
    check_same_cluster(changed, {"a": other})
    with pytest.raises(HarnessError, match=r"a has another llama\.cpp \(1, was 2\)"):
        check_same_cluster(changed, {"a": node})
    check_same_cluster(replace(run, profile=Profile(trials=[pool, pin])), {"a": other})


def parsed(line: str) -> dict[str, Any] | None:
    """A record; None where the cut went through it."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(trials=st.integers(0, 2000), requests=st.integers(0, 2000))
def test_files_cut_at_any_byte_are_read_and_begun_anew(
    tmp_path_factory: pytest.TempPathFactory, trials: int, requests: int
) -> None:
    reports = tmp_path_factory.mktemp("reports")
    folder = cut_short(reports)
    folder.append_trial(trial("02-m-pool"))
    for name, size in (("trials", trials), ("requests", requests)):
        path = folder.path / f"{name}.jsonl"
        path.write_bytes(path.read_bytes()[:size])
    run = last(reports)
    left = (folder.path / "trials.jsonl").read_text()
    assert [one.id for one in run.done] == [
        text["id"] for line in left.splitlines() if (text := parsed(line))
    ]
    drop_unfinished(run)
    again = RunFolder(folder.path)
    again.append_trial(trial("03-m-pool"))
    lines = (folder.path / "trials.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [*(one.id for one in run.done), "03-m-pool"]
