"""What is kept of a run that was cut short, wherever the cut was."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness.contracts.run_records import NodeFacts, Outcome, Request, RunManifest, Trial
from harness.errors import HarnessError
from harness.runs.read import read_manifest, read_requests, read_trials
from harness.runs.store import RunFolder
from harness.trials.profile.profile import Profile
from harness.trials.profile.steps import PinStep, PoolStep
from harness.trials.resume import (
    check_same_cluster,
    drop_unfinished,
    may_have_left_a_fault,
    read_unfinished,
    unfinished_run,
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


def test_newest_run_of_the_inventory_is_found_unless_it_ended(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory"
    assert unfinished_run(tmp_path, inventory) is None
    cut_short(tmp_path)
    assert unfinished_run(tmp_path, inventory) == "20260101T000000Z-mine"
    assert unfinished_run(tmp_path, tmp_path / "another") is None
    cut_short(tmp_path, "20260102T000000Z-mine", Outcome.PASSED)
    assert unfinished_run(tmp_path, inventory) is None, "a later run has ended: the earlier one is history"


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
    assert not may_have_left_a_fault(tmp_path, inventory)
    folder = cut_short(tmp_path, outcome=outcome)
    manifest = read_manifest(folder.path)
    folder.write_manifest(manifest.model_copy(update={"steps": {"trials": [{"kind": kind}]}}))
    (folder.path / "events.jsonl").write_text(
        "".join(json.dumps({"time_ns": 1, "kind": one}) + "\n" for one in events)
    )
    assert may_have_left_a_fault(tmp_path, inventory) is looked_for


def test_finished_trials_stay_and_the_cut_one_begins_anew(tmp_path: Path) -> None:
    folder = cut_short(tmp_path)
    folder.append_trial(trial("02-m-pool", Outcome.INTERRUPTED))
    run = read_unfinished("last", tmp_path, tmp_path / "inventory")
    assert [one.id for one in run.done] == ["01-m-pool"]
    assert run.profile == STEPS
    drop_unfinished(run)
    assert [one.id for one in read_trials(folder.path)] == ["01-m-pool"]
    assert [one.trial for one in read_requests(folder.path)] == ["01-m-pool"]


@pytest.mark.parametrize("outcome", [Outcome.PASSED, Outcome.FAILED])
def test_run_that_ended_cannot_be_resumed(tmp_path: Path, outcome: Outcome) -> None:
    cut_short(tmp_path, outcome=outcome)
    with pytest.raises(HarnessError, match=f"has ended \\({outcome}\\)"):
        read_unfinished("20260101T000000Z-mine", tmp_path, tmp_path / "inventory")


def test_run_of_another_inventory_is_refused_with_the_right_one(tmp_path: Path) -> None:
    cut_short(tmp_path)
    with pytest.raises(HarnessError, match=f"resume it with --inventory {tmp_path / 'inventory'}"):
        read_unfinished("20260101T000000Z-mine", tmp_path, tmp_path / "elsewhere")
    with pytest.raises(HarnessError, match="nothing to resume"):
        read_unfinished("last", tmp_path, tmp_path / "elsewhere")


def test_cluster_with_another_binary_or_node_is_refused(tmp_path: Path) -> None:
    cut_short(tmp_path)
    run = read_unfinished("last", tmp_path, tmp_path / "inventory")
    (node,) = run.manifest.nodes
    check_same_cluster(run, {"a": node})
    with pytest.raises(HarnessError, match=r"a has another llama\.cpp"):
        check_same_cluster(run, {"a": node.model_copy(update={"binaries": {"rpc-server": "y"}})})
    with pytest.raises(HarnessError, match=r"other nodes \(b\)"):
        check_same_cluster(run, {"a": node, "b": node})


def test_run_stopped_by_hand_is_the_last_to_resume_too(tmp_path: Path) -> None:
    cut_short(tmp_path, outcome=Outcome.INTERRUPTED)
    assert unfinished_run(tmp_path, tmp_path / "inventory") == "20260101T000000Z-mine"


def test_run_of_two_pins_goes_on_with_the_one_it_had_put_up(tmp_path: Path) -> None:
    cut_short(tmp_path)
    run = read_unfinished("last", tmp_path, tmp_path / "inventory")
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
    run = read_unfinished("last", reports, reports / "inventory")
    left = (folder.path / "trials.jsonl").read_text()
    assert [one.id for one in run.done] == [
        text["id"] for line in left.splitlines() if (text := parsed(line))
    ]
    drop_unfinished(run)
    again = RunFolder(folder.path)
    again.append_trial(trial("03-m-pool"))
    lines = (folder.path / "trials.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [*(one.id for one in run.done), "03-m-pool"]
