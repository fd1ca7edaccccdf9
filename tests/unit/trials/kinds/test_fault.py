"""The fault trial's decisions, the early end of thrash, and the floors of a load."""

import asyncio
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness.cluster.inventory import load_inventory
from harness.cluster.remote import rates
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.contracts.run_records import Outcome
from harness.errors import HarnessError
from harness.trials.checks import check_faults
from harness.trials.faults.catalogue import FAULTS, cause_of, make_fault
from harness.trials.faults.fault import to_the_end
from harness.trials.faults.starts import ClosedPort
from harness.trials.kinds.fault import Seen, run_fault
from harness.trials.kinds.lower_bounds import load_floors
from harness.trials.load_generator.telemetry import Point
from harness.trials.load_generator.thrash_guard import GROWN_BYTES, ends_thrash, held_more, hopeless
from harness.trials.profile.profile import Profile, load_profile
from harness.trials.profile.steps import FaultStep
from pydantic import ValidationError

LAB = Path(__file__).parents[4] / "inventories" / "lab"
MIB = 1 << 20


def point(second: int, *, swap: int = 0, rss: int = 0, faults: int = 0, full: float | None = None) -> Point:
    return Point(second * 10**9, 0, swap, rss, swap, faults, None, None, memory_full_avg10=full)


def thrashing(seconds: int, *, growing: int = 0) -> dict[str, list[Point]]:
    each = [point(s, swap=200 * MIB, rss=growing * s, faults=500 * s) for s in range(seconds + 1)]
    return {"a": each, "b": [point(s) for s in range(seconds + 1)]}


def test_thrash_without_progress_is_hopeless_after_a_minute_and_says_why() -> None:
    found = hopeless(thrashing(60), None, 60)
    assert found is not None
    assert found.failure_class is FailureClass.SWAP_THRASH
    assert [one.line for one in found.evidence] == [
        "rpc-server had up to 200 MiB in swap; 500 major faults/s over 60 s",
        "ended early: no progress within 60 s",
    ]


def test_what_moves_or_has_not_thrashed_long_is_left_alone() -> None:
    assert hopeless(thrashing(60), "a token", 60) is None
    assert hopeless(thrashing(30), None, 60) is None
    assert hopeless({"a": [point(s) for s in range(61)]}, None, 60) is None, "slow is not thrash"
    assert hopeless({}, None, 60) is None


def test_node_that_stands_still_for_memory_thrashes_though_it_takes_few_faults() -> None:
    pressed = {"a": [point(s, swap=200 * MIB, full=45.0) for s in range(61)]}
    found = hopeless(pressed, None, 60)
    assert found is not None
    assert "memory full 45 % of the time" in found.evidence[0].line
    assert hopeless({"a": [point(s, swap=200 * MIB, full=5.0) for s in range(61)]}, None, 60) is None


def test_load_gets_somewhere_while_its_backends_hold_more_and_more() -> None:
    assert held_more(thrashing(60, growing=GROWN_BYTES // 60 + 1)) is not None
    assert held_more(thrashing(60, growing=1)) is None


def test_floors_are_bytes_over_rates_and_absent_where_nothing_was_measured() -> None:
    rated = {"disk": 500.0, "hash": 800.0}
    assert load_floors(rated, 1000, 1600) == {"disk_floor_s": 2.0, "hash_floor_s": 2.0}
    assert load_floors({"disk": 500.0}, 1000, 1600) == {"disk_floor_s": 2.0}
    assert load_floors(rated, None, 0) == {"hash_floor_s": 0.0}
    assert load_floors({}, 1000, 1600) == {}


def test_rates_are_measured_in_the_file_and_there_is_none_without_the_tool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.write_bytes(os.urandom(3 * MIB))
    rates.main({"path": str(model), "size": 2 * MIB, "tool": "/nowhere/tool"})
    found = json.loads(capsys.readouterr().out)
    assert found["disk"] > 0
    assert found["hash"] is None
    rates.main({"path": str(model), "size": 2 * MIB, "tool": "/bin/cat"})
    assert json.loads(capsys.readouterr().out)["hash"] is None, "a tool that fails measures nothing"


def diagnosed(failure: FailureClass) -> Diagnosis:
    line = Evidence(source="s", line="l")
    return Diagnosis(failure_class=failure, evidence=[line], confidence=Confidence.LIKELY, advice="")


def test_diagnosis_that_names_the_cause_counts_wherever_it_is_told() -> None:
    lost, oom = diagnosed(FailureClass.BACKEND_LOST), diagnosed(FailureClass.OOM_KILLED)
    seen = Seen(coordinator=lost, backend=oom)
    assert seen.best(FailureClass.OOM_KILLED) is oom
    assert seen.best(FailureClass.BACKEND_LOST) is lost
    assert seen.best(FailureClass.HUNG) is lost, "the coordinator's, where neither is the cause"
    assert Seen().best(FailureClass.HUNG) is None


def step(**more: object) -> FaultStep:
    asked = {"kind": "fault", "model": "m", "fault": "kill-backend", "node": "node1", **more}
    return FaultStep.model_validate(asked)


POSSIBLE: dict[str, dict[str, object]] = {"other-build": {"build": 6792}}
"""What a fault cannot be asked for without."""


def test_every_fault_has_its_cause_but_the_slow_link_and_a_profile_may_say_another() -> None:
    kinds = FaultStep.model_json_schema()["properties"]["fault"]["enum"]
    assert set(kinds) == set(FAULTS)
    without = [kind for kind in kinds if cause_of(step(fault=kind, **POSSIBLE.get(kind, {}))) is None]
    assert without == ["slow-link"]
    assert cause_of(step(expected="hung")) is FailureClass.HUNG


def test_every_fault_is_made_as_what_it_is_called() -> None:
    inventory = load_inventory(LAB)
    node, head = inventory.node("node1"), inventory.head
    up = CoordinatorState(phase=CoordinatorPhase.READY, pid=7)
    for kind in FAULTS:
        asked = step(fault=kind, **POSSIBLE.get(kind, {}))
        assert make_fault(asked, node, head, None, up).kind == kind
    with pytest.raises(HarnessError, match="has ended already"):
        make_fault(step(fault="kill-coordinator"), node, head, None, None)


@pytest.mark.parametrize(
    ("asked", "lacks"),
    [
        ({"fault": "other-build"}, "needs 'build'"),
        ({"fault": "kill-coordinator", "moment": "idle"}, "answers"),
    ],
)
def test_fault_that_cannot_be_caused_so_is_refused_with_the_profile(
    asked: dict[str, object], lacks: str
) -> None:
    with pytest.raises(ValidationError, match=lacks):
        step(**asked)


def test_real_machines_are_hurt_only_with_consent_and_only_as_they_can_be() -> None:
    inventory = load_inventory(LAB)
    asked = Profile(trials=[step()])
    with pytest.raises(HarnessError, match="faults_allowed: true"):
        check_faults(asked, inventory, None)
    check_faults(asked.model_copy(update={"faults_allowed": True}), inventory, None)
    starved = Profile(faults_allowed=True, trials=[step(fault="starve-into-swap")])
    with pytest.raises(HarnessError, match="in a lab alone"):
        check_faults(starved, inventory, None)
    with pytest.raises(HarnessError, match="no backend 'node9'; there are: node1"):
        check_faults(Profile(faults_allowed=True, trials=[step(node="node9")]), inventory, None)


def test_shipped_faults_are_all_but_the_build_that_nobody_has() -> None:
    kinds = set(FaultStep.model_json_schema()["properties"]["fault"]["enum"])
    shipped = {one.fault for one in load_profile("faults")[2].trials if isinstance(one, FaultStep)}
    assert kinds - shipped == {"other-build"}


async def test_undo_is_done_however_often_its_caller_is_cancelled() -> None:
    done: list[str] = []
    go_on = asyncio.Event()

    async def undo() -> None:
        await go_on.wait()
        done.append("undone")

    caller = asyncio.create_task(to_the_end(undo()))
    for _ in range(3):
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.sleep(0)
    assert not caller.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done == ["undone"]


async def test_undo_that_fails_says_so() -> None:
    async def undo() -> None:
        raise HarnessError("node1: cannot be mended")

    with pytest.raises(HarnessError, match="cannot be mended"):
        await to_the_end(undo())


async def test_thrash_of_the_trial_before_is_not_held_against_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []
    enough = asyncio.Event()

    class Series:
        def windows(self, names: list[str], start_ns: int, end_ns: int) -> dict[str, list[Point]]:
            asked.append((start_ns, end_ns))
            if len(asked) > 1:
                enough.set()
            return {}

    monkeypatch.setattr("harness.trials.load_generator.thrash_guard.LOOK_EVERY_S", 0.01)
    inventory = load_inventory(LAB)
    ctx: Any = SimpleNamespace(inventory=inventory, sampler=SimpleNamespace(series=Series()))
    begun_ns = time.time_ns()
    async with ends_thrash(ctx):
        await enough.wait()
    assert all(start >= begun_ns for start, _ in asked)


async def test_fault_that_was_never_caused_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*given: object) -> None:
        pass

    async def plan(request: object) -> SimpleNamespace:
        return SimpleNamespace(plan=None)

    for name, double in (("stop", silent), ("_acted", silent), ("_forget_peer", silent)):
        monkeypatch.setattr(f"harness.trials.kinds.fault.{name}", double)
    ctx: Any = SimpleNamespace(
        inventory=load_inventory(LAB), router=SimpleNamespace(plan=plan), event=lambda *a, **k: None
    )
    found = await run_fault(ctx, "t", step(fault="slow-link"))
    assert (found.outcome, "could not be caused" in found.answer) == (Outcome.FAILED, True)


class Recorded:
    """A run's context that keeps what is told of it; whatever is loaded can be unloaded."""

    def __init__(self) -> None:
        self.inventory = load_inventory(LAB)
        self.loaded: object = "the fault's own load"
        self.lab = None
        self.kinds: list[str] = []
        self.router = SimpleNamespace(plan=self._plan, unload=self._unload)

    async def _plan(self, request: object) -> SimpleNamespace:
        return SimpleNamespace(plan=None)

    async def _unload(self, patience_s: float) -> None:
        self.kinds.append("unload")

    def event(self, time_ns: int, kind: str, *more: object, **data: object) -> None:
        self.kinds.append(kind)

    def say(self, text: str) -> None:
        pass


class Unmendable(ClosedPort):
    """Stands in for a fault that cannot be undone, on a node that is not there."""

    async def inject(self) -> str:
        return "broken"

    async def undo(self) -> None:
        raise HarnessError("node1: umount: target is busy")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    async def silent(*given: object) -> None:
        pass

    for name in ("harness.trials.kinds.fault.stop", "harness.trials.kinds.fault.serve_again"):
        monkeypatch.setattr(name, silent)
    monkeypatch.setattr("harness.trials.faults.fault.reset_failed", silent)
    return Recorded()


async def test_fault_that_could_not_be_undone_is_not_said_to_be(
    recorded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def load(*given: object) -> Seen:
        return Seen()

    node = recorded.inventory.node("node1")
    monkeypatch.setattr("harness.trials.kinds.fault.make_fault", lambda *given: Unmendable(node))
    monkeypatch.setattr("harness.trials.kinds.fault._load", load)
    monkeypatch.setattr("harness.trials.kinds.fault._look", load)
    with pytest.raises(HarnessError, match="target is busy"):
        await run_fault(recorded, "t", step(fault="closed-port", moment="idle", deadline_s=0.1))
    assert recorded.kinds == ["fault", "unload"]


async def test_load_of_a_fault_that_never_came_is_not_left_for_the_next_trial(
    recorded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def too_late(*given: object) -> None:
        raise HarnessError("the request was over before the fault came: answered")

    monkeypatch.setattr("harness.trials.kinds.fault._acted", too_late)
    with pytest.raises(HarnessError, match="before the fault came"):
        await run_fault(recorded, "t", step(fault="kill-backend"))
    assert (recorded.loaded, recorded.kinds) == (None, ["unload"])


async def test_ctrl_c_stays_one_though_the_backend_does_not_serve_again(
    recorded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def for_ever(*given: object) -> None:
        await asyncio.sleep(3600)

    async def refuses(*given: object) -> None:
        raise HarnessError("node1 cannot be reached")

    monkeypatch.setattr("harness.trials.kinds.fault._acted", for_ever)
    monkeypatch.setattr("harness.trials.kinds.fault.serve_again", refuses)
    running = asyncio.create_task(run_fault(recorded, "t", step(fault="kill-backend")))
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert recorded.kinds == ["unload", "warning"]
