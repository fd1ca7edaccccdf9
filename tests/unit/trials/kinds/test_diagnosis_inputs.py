"""An end is diagnosed with what the nodes know beside the router's evidence."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from harness.cluster.inventory import Node, parse_inventory
from harness.cluster.node_inspection import ConnectionSeen, NodeLook, ProcessSeen
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState, LoadTimings
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, ExitStatus, FailureClass
from harness.trials.context import Context
from harness.trials.kinds import diagnosis_inputs as evidence
from harness.trials.load_generator.telemetry import Point, Series

S = 10**9
LOST = "Remote RPC server crashed or returned malformed response\n"


def ended(**status: int) -> CoordinatorState:
    return CoordinatorState(
        phase=CoordinatorPhase.ENDED,
        start_id="start",
        argv=["llama-server", "--rpc", "10.0.0.1:50052"],
        timings=LoadTimings(requested_ns=2 * S, exec_ns=2 * S),
        exit=ExitStatus(time_ns=4 * S, **status),
    )


def context(tmp_path: Path, *, log: str = "", kills: dict[str, int] | None = None) -> Context:
    (tmp_path / "start.log").write_text(log)
    series = Series()
    for node in ("head", "node1"):
        for second in range(1, 7):
            grown = (kills or {}).get(node, 0) if second > 3 else 0
            series.add(
                node, Point(second * S, 0, 0, 0, 0, 0, None, None, oom_kills=7 + grown, rpc_restarts=grown)
            )
    hosts: dict[str, dict[str, str]] = {"head": {}, "node1": {}}
    listing = {"_meta": {"hostvars": hosts}, "backends": {"hosts": list(hosts)}, "head": {"hosts": ["head"]}}

    async def caught_up(until_ns: int) -> None:
        return None

    return cast(
        Context,
        SimpleNamespace(
            inventory=parse_inventory(Path("inventory"), listing),
            run=SimpleNamespace(logs=tmp_path),
            sampler=SimpleNamespace(series=series, caught_up=caught_up),
            clock_offset_ns={},
        ),
    )


@pytest.fixture
def journals(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What each node's journal holds; the one double here is the SSH to it."""
    texts: dict[str, str] = {}

    async def read(node: Node, *_: Any) -> str:
        return texts.get(node.name, "")

    monkeypatch.setattr(evidence, "read_journal", read)
    monkeypatch.setattr(evidence, "read_kernel_log", read)
    return texts


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> dict[str, NodeLook | str]:
    """What is seen of each node at the moment; by default nothing out of the ordinary."""
    seen: dict[str, NodeLook | str] = {"head": node_look(), "node1": node_look()}

    async def look_at(nodes: Sequence[Node], window_s: float = 0.0) -> dict[str, NodeLook | str]:
        return {node.name: seen[node.name] for node in nodes}

    monkeypatch.setattr(evidence, "look_at", look_at)
    return seen


def node_look(state: str = "S", build: str = "6751 (01d2bdc2b)") -> NodeLook:
    """A node whose rpc-server serves the head node and used no CPU lately."""
    process = ProcessSeen(program="rpc-server", pid=7, state=state, cpu_s=9.0, used_s=0.0, build=build)
    connection = ConnectionSeen(
        local="node1:50052",
        peer="head:40000",
        unread_bytes=0,
        waiting_bytes=0,
        since_sent_s=4.0,
        since_heard_s=4.0,
    )
    return NodeLook(processes=[process], connections=[connection], cache=None, unit={"MainPID": "7"})


@pytest.mark.usefixtures("journals", "looks")
def test_kill_that_the_kernel_counted_is_an_oom_kill(tmp_path: Path) -> None:
    state = ended(signal=9)
    asyncio.run(evidence.diagnose_with_nodes(context(tmp_path, log="loading\n", kills={"head": 1}), state))
    assert state.diagnosis is not None
    assert state.diagnosis.failure_class is FailureClass.OOM_KILLED
    assert state.diagnosis.evidence[0].line == "OOM kills on head while it ran: 1"


@pytest.mark.usefixtures("journals", "looks")
def test_kills_from_before_the_start_explain_nothing(tmp_path: Path) -> None:
    state = ended(signal=9)
    asyncio.run(evidence.diagnose_with_nodes(context(tmp_path, log="loading\n"), state))
    assert state.diagnosis is not None
    assert state.diagnosis.failure_class is FailureClass.STOPPED


@pytest.mark.usefixtures("looks")
def test_lost_backend_brings_its_own_nodes_evidence(tmp_path: Path, journals: dict[str, str]) -> None:
    journals["node1"] = "llama-rpc-server.service: Main process exited, code=killed, status=9/KILL"
    state = ended(signal=6)
    asyncio.run(evidence.diagnose_with_nodes(context(tmp_path, log=LOST, kills={"node1": 2}), state))
    assert state.diagnosis is not None
    assert state.diagnosis.failure_class is FailureClass.BACKEND_LOST
    sources = {item.source: item.line for item in state.diagnosis.evidence}
    assert sources["start.log:1"] == LOST.strip()
    assert sources["samples node1"] == "OOM kills on node1 while it ran: 2"
    assert sources["unit node1"] == "NRestarts=2"
    assert "Main process exited" in sources["journal node1"]


@pytest.mark.usefixtures("journals", "looks")
def test_coordinator_that_runs_is_left_alone(tmp_path: Path) -> None:
    state = ended(signal=9).model_copy(update={"exit": None})
    asyncio.run(evidence.diagnose_with_nodes(context(tmp_path, kills={"head": 1}), state))
    assert state.diagnosis is None


def running() -> CoordinatorState:
    return ended(signal=9).model_copy(update={"exit": None, "phase": CoordinatorPhase.READY})


@pytest.mark.usefixtures("journals")
async def test_one_that_waits_for_a_stopped_backend_is_stalled(
    tmp_path: Path, looks: dict[str, NodeLook | str]
) -> None:
    looks["node1"] = node_look(state="T")
    state = running()
    await evidence.diagnose_waiting(context(tmp_path, log="loading\n"), state)
    assert state.diagnosis
    assert state.diagnosis.failure_class is FailureClass.BACKEND_STALLED
    assert state.diagnosis.evidence[0].line == "rpc-server is stopped (state T), peer head:40000"


@pytest.mark.usefixtures("journals")
async def test_one_that_was_ended_for_waiting_is_diagnosed_by_what_it_waited_for(
    tmp_path: Path, looks: dict[str, NodeLook | str]
) -> None:
    looks["node1"] = "node1 (node1) cannot be reached over SSH"
    state = ended(signal=9)
    state.diagnosis = Diagnosis(
        failure_class=FailureClass.BACKEND_STALLED,
        evidence=[Evidence(source="router", line="for 30 s no token")],
        confidence=Confidence.LIKELY,
        advice="",
    )
    await evidence.diagnose_with_nodes(context(tmp_path, log="loading\n"), state)
    assert state.diagnosis.failure_class is FailureClass.NETWORK_PARTITION
    assert [item.source for item in state.diagnosis.evidence] == ["node node1", "router"]


@pytest.mark.usefixtures("journals")
async def test_what_the_router_saw_stays_where_the_nodes_show_no_cause(
    tmp_path: Path, looks: dict[str, NodeLook | str]
) -> None:
    state = ended(signal=9)
    known = state.diagnosis = Diagnosis(
        failure_class=FailureClass.HUNG, evidence=[], confidence=Confidence.CERTAIN, advice="look"
    )
    busy = node_look().processes[0].model_copy(update={"used_s": 3.0, "state": "R"})
    looks["head"] = looks["node1"] = node_look().model_copy(update={"processes": [busy]})
    await evidence.diagnose_with_nodes(context(tmp_path, log="loading\n"), state)
    assert state.diagnosis == known


@pytest.mark.usefixtures("journals")
async def test_ready_coordinator_over_another_build_is_a_mismatch(
    tmp_path: Path, looks: dict[str, NodeLook | str]
) -> None:
    assert await evidence.diagnose_ready(context(tmp_path), running()) is None
    looks["node1"] = node_look(build="6792 (abc)")
    found = await evidence.diagnose_ready(context(tmp_path), running())
    assert found
    assert found.failure_class is FailureClass.BUILD_MISMATCH
    assert {"llama.cpp 6751 (01d2bdc2b)", "llama.cpp 6792 (abc)"} == {item.line for item in found.evidence}


def test_age_of_a_sample_is_told_by_the_clock_of_its_node(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    state = ended(code=1)
    looks: dict[str, NodeLook | str] = dict.fromkeys(("head", "node1"), "no route to host")
    before = evidence._backends(ctx, state, looks, 0)["node1"].silent_s
    ctx.clock_offset_ns["node1"] = -20 * S
    after = evidence._backends(ctx, state, looks, 0)["node1"].silent_s
    assert before
    assert after == pytest.approx(before - 20, abs=1)
