"""The fault trial: what it decides, and what it leaves behind however it ends."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness.cluster.inventory import Inventory
from harness.contracts.coordinator_state import BackendBuffers, CoordinatorPhase, CoordinatorState, LoadReport
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.contracts.run_records import Outcome, Request
from harness.errors import HarnessError
from harness.router_client.client import RouterRefusedError
from harness.trials.faults.catalogue import FAULTS, cause_of, make_fault
from harness.trials.kinds.fault import Observation, run_fault
from harness.trials.preflight import check_faults
from harness.trials.profile.profile import Profile, load_profile
from harness.trials.profile.steps import FaultStep
from pydantic import ValidationError
from tests.unit.trials.cluster_double import RouterDouble, events, make_context, node_double

INVENTORY = Inventory(
    Path("lab"),
    {"node1": node_double("node1", "backends"), "node2": node_double("node2", "head", "backends")},
)


def diagnosed(failure: FailureClass) -> Diagnosis:
    line = Evidence(source="s", line="l")
    return Diagnosis(failure_class=failure, evidence=[line], confidence=Confidence.LIKELY, advice="")


def test_diagnosis_that_names_the_cause_counts_wherever_it_is_told() -> None:
    lost, oom = diagnosed(FailureClass.BACKEND_LOST), diagnosed(FailureClass.OOM_KILLED)
    seen = Observation(coordinator=lost, backend=oom)
    assert seen.best(FailureClass.OOM_KILLED) is oom
    assert seen.best(FailureClass.BACKEND_LOST) is lost
    assert seen.best(FailureClass.HUNG) is lost, "the coordinator's, where neither is the cause"
    assert Observation().best(FailureClass.HUNG) is None


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
    inventory = INVENTORY
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
    inventory = INVENTORY
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


def never_starts(argv: Sequence[str]) -> list[str]:
    """A node whose rpc-server cannot be started."""
    return ["false"] if "start" in argv else ["true"]


async def test_fault_that_was_never_caused_is_no_success(tmp_path: Path) -> None:
    """slow-link expects no failure, and none is diagnosed: the load before it was refused."""
    router = RouterDouble(loaded=RouterRefusedError("no memory", "does_not_fit", None))
    result = await run_fault(make_context(tmp_path, router=router), "t", step(fault="slow-link"))
    assert (result.outcome, "could not be caused" in result.answer) == (Outcome.FAILED, True)


async def test_fault_that_could_not_be_undone_is_not_said_to_be(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, [node_double("node1", "head", "backends", answer=never_starts)])
    with pytest.raises(HarnessError, match="node1: 'systemctl start"):
        await run_fault(ctx, "t", step(fault="closed-port", moment="idle", deadline_s=0.1))
    assert [event.kind for event in events(ctx)] == ["fault", "warning"]


async def test_fault_amid_a_load_waits_for_the_first_buffer_without_fetching_the_log(tmp_path: Path) -> None:
    starting = CoordinatorState(phase=CoordinatorPhase.STARTING, start_id="1", model="m")
    buffer = BackendBuffers(device="RPC0[10.0.0.1:50052]", model_bytes=5)
    reported = starting.model_copy(update={"report": LoadReport(buffers=[buffer])})
    router = RouterDouble(loaded=asyncio.Event(), loading=[starting, starting, reported])
    injected = asyncio.Event()

    def stops(argv: Sequence[str]) -> list[str]:
        if "stop" in argv:
            router.calls.append("fault")
            injected.set()
        return ["true"]

    ctx = make_context(tmp_path, [node_double("node1", "head", "backends", answer=stops)], router)
    running = asyncio.create_task(run_fault(ctx, "t", step(fault="closed-port", moment="loading")))
    await injected.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    before = router.calls[: router.calls.index("fault")]
    assert "log" not in before
    assert before.count("coordinator") == 3, "one look after the other, until the first buffer is there"


async def test_load_of_a_fault_that_never_came_is_not_left_for_the_next_trial(tmp_path: Path) -> None:
    over = Request(trial="t", index=1, route="coordinator", model="m", sent_ns=0)
    router = RouterDouble(answer=over)
    ctx = make_context(tmp_path, router=router)
    with pytest.raises(HarnessError, match="over before the fault came: answered"):
        await run_fault(ctx, "t", step(fault="kill-backend", moment="prompt", after_s=0.01))
    assert ctx.loaded is None
    assert router.calls == ["unload", "load", "unload"]


async def test_ctrl_c_stays_one_though_the_backend_does_not_serve_again(tmp_path: Path) -> None:
    loading = asyncio.Event()
    router = RouterDouble(loaded=loading)
    ctx = make_context(tmp_path, [node_double("node1", "head", "backends", answer=never_starts)], router)
    running = asyncio.create_task(run_fault(ctx, "t", step(fault="kill-backend")))
    await loading.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert router.calls[-1] == "unload"
    assert [event.kind for event in events(ctx)] == ["warning"]
