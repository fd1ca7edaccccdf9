"""An end is diagnosed with what the nodes know beside the router's evidence."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness.cluster.inventory import Node
from harness.cluster.node_inspection import LlamaProcess, NodeInspection, RpcConnection
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState, LoadTimings
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, ExitStatus, FailureClass
from harness.trials.context import Context
from harness.trials.kinds import diagnosis_inputs as evidence
from harness.trials.load_generator.samples import NodeClocks, Point
from tests.unit.trials.cluster_double import make_context, node_double

S = 10**9
LOST = "Remote RPC server crashed or returned malformed response\n"


def ended(*, ahead_s: int = 0, **status: int) -> CoordinatorState:
    """A coordinator of seconds 2 to 4, recorded by a head node whose clock is ahead of ours."""
    ahead_ns = ahead_s * S
    return CoordinatorState(
        phase=CoordinatorPhase.ENDED,
        start_id="start",
        argv=["llama-server", "--rpc", "10.0.0.1:50052"],
        timings=LoadTimings(requested_ns=2 * S + ahead_ns, exec_ns=2 * S + ahead_ns),
        exit=ExitStatus(time_ns=4 * S + ahead_ns, **status),
    )


@dataclass
class Nodes:
    """What each node prints over SSH: its journal, and what its processes and sockets show."""

    journals: dict[str, str] = field(default_factory=dict)
    looks: dict[str, NodeInspection | None] = field(default_factory=dict)
    """By default nothing out of the ordinary; None for a node that cannot be reached."""
    since: dict[str, str] = field(default_factory=dict)
    """From when each node's journal was read."""

    def double(self, name: str, *groups: str) -> Node:
        def answer(argv: Sequence[str]) -> list[str]:
            look = self.looks.get(name, node_look())
            if look is None:
                return ["sh", "-c", "exit 255"]
            text = look.model_dump_json()
            if argv[0] == "journalctl":
                self.since[name] = argv[list(argv).index("--since") + 1]
                text = "" if "--dmesg" in argv else self.journals.get(name, "")
            return ["sh", "-c", 'cat >/dev/null; printf %s "$1"', "sh", text]

        return node_double(name, *groups, answer=answer)


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


def context(tmp_path: Path, nodes: Nodes, *, log: str = "", kills: dict[str, int] | None = None) -> Context:
    ctx = make_context(
        tmp_path, [nodes.double("head", "head", "backends"), nodes.double("node1", "backends")]
    )
    ctx.run.write_log("start.log", log)
    for node in ("head", "node1"):
        for second in range(1, 7):
            grown = (kills or {}).get(node, 0) if second > 3 else 0
            ctx.sampler.series.add(
                node, Point(second * S, 0, 0, 0, 0, 0, oom_kills=7 + grown, rpc_restarts=grown)
            )
    return ctx


def node_look(state: str = "S", build: str = "6751 (01d2bdc2b)") -> NodeInspection:
    """A node whose rpc-server serves the head node and used no CPU lately."""
    process = LlamaProcess(program="rpc-server", pid=7, state=state, cpu_s=9.0, used_s=0.0, build=build)
    connection = RpcConnection(
        local="node1:50052",
        peer="head:40000",
        unread_bytes=0,
        waiting_bytes=0,
        since_sent_s=4.0,
        since_acknowledged_s=4.0,
    )
    return NodeInspection(processes=[process], connections=[connection], cache=None, unit={"MainPID": "7"})


async def test_kill_that_the_kernel_counted_is_an_oom_kill(tmp_path: Path, nodes: Nodes) -> None:
    state = ended(signal=9)
    await evidence.diagnose_with_nodes(context(tmp_path, nodes, log="loading\n", kills={"head": 1}), state)
    assert state.diagnosis is not None
    assert state.diagnosis.failure_class is FailureClass.OOM_KILLED
    assert state.diagnosis.evidence[0].line == "OOM kills on head while it ran: 1"


@pytest.mark.parametrize("ahead_s", [-30, 30])
async def test_end_told_by_another_clock_is_matched_with_the_samples_of_its_time(
    tmp_path: Path, nodes: Nodes, ahead_s: int
) -> None:
    state = ended(signal=9, ahead_s=ahead_s)
    ctx = context(tmp_path, nodes, log="loading\n", kills={"head": 1})
    ctx.clocks = NodeClocks({"head": ahead_s * S})
    await evidence.diagnose_with_nodes(ctx, state)
    assert state.diagnosis is not None
    assert state.diagnosis.failure_class is FailureClass.OOM_KILLED
    since = {"head": f"@{2 + ahead_s}", "node1": "@2"}
    assert nodes.since == since, "journals are asked in their node's time"


async def test_kills_from_before_the_start_explain_nothing(tmp_path: Path, nodes: Nodes) -> None:
    state = ended(signal=9)
    await evidence.diagnose_with_nodes(context(tmp_path, nodes, log="loading\n"), state)
    assert state.diagnosis is not None
    assert state.diagnosis.failure_class is FailureClass.STOPPED


async def test_lost_backend_brings_its_own_nodes_evidence(tmp_path: Path, nodes: Nodes) -> None:
    nodes.journals["node1"] = "llama-rpc-server.service: Main process exited, code=killed, status=9/KILL"
    state = ended(signal=6)
    await evidence.diagnose_with_nodes(context(tmp_path, nodes, log=LOST, kills={"node1": 2}), state)
    assert state.diagnosis is not None
    assert state.diagnosis.failure_class is FailureClass.BACKEND_LOST
    sources = {item.source: item.line for item in state.diagnosis.evidence}
    assert sources["start.log:1"] == LOST.strip()
    assert sources["samples node1"] == "OOM kills on node1 while it ran: 2"
    assert sources["unit node1"] == "NRestarts=2"
    assert "Main process exited" in sources["journal node1"]


async def test_coordinator_that_runs_is_left_alone(tmp_path: Path, nodes: Nodes) -> None:
    state = ended(signal=9).model_copy(update={"exit": None})
    await evidence.diagnose_with_nodes(context(tmp_path, nodes, kills={"head": 1}), state)
    assert state.diagnosis is None


def running() -> CoordinatorState:
    return ended(signal=9).model_copy(update={"exit": None, "phase": CoordinatorPhase.READY})


async def test_one_that_waits_for_a_stopped_backend_is_stalled(tmp_path: Path, nodes: Nodes) -> None:
    nodes.looks["node1"] = node_look(state="T")
    state = running()
    await evidence.diagnose_waiting(context(tmp_path, nodes, log="loading\n"), state)
    assert state.diagnosis
    assert state.diagnosis.failure_class is FailureClass.BACKEND_STALLED
    assert state.diagnosis.evidence[0].line == "rpc-server is stopped (state T), peer head:40000"


async def test_one_that_was_ended_for_waiting_is_diagnosed_by_what_it_waited_for(
    tmp_path: Path, nodes: Nodes
) -> None:
    nodes.looks["node1"] = None
    state = ended(signal=9)
    state.diagnosis = Diagnosis(
        failure_class=FailureClass.BACKEND_STALLED,
        evidence=[Evidence(source="router", line="for 30 s no token")],
        confidence=Confidence.LIKELY,
        advice="",
    )
    await evidence.diagnose_with_nodes(context(tmp_path, nodes, log="loading\n"), state)
    assert state.diagnosis.failure_class is FailureClass.NETWORK_PARTITION
    assert [item.source for item in state.diagnosis.evidence] == ["node node1", "router"]


async def test_what_the_router_saw_stays_where_the_nodes_show_no_cause(tmp_path: Path, nodes: Nodes) -> None:
    state = ended(signal=9)
    known = state.diagnosis = Diagnosis(
        failure_class=FailureClass.HUNG, evidence=[], confidence=Confidence.CERTAIN, advice="look"
    )
    busy = node_look().processes[0].model_copy(update={"used_s": 3.0, "state": "R"})
    nodes.looks["head"] = nodes.looks["node1"] = node_look().model_copy(update={"processes": [busy]})
    await evidence.diagnose_with_nodes(context(tmp_path, nodes, log="loading\n"), state)
    assert state.diagnosis == known


async def test_ready_coordinator_over_another_build_is_a_mismatch(tmp_path: Path, nodes: Nodes) -> None:
    ctx = context(tmp_path, nodes)
    assert await evidence.diagnose_ready(ctx, running()) is None
    nodes.looks["node1"] = node_look(build="6792 (abc)")
    found = await evidence.diagnose_ready(ctx, running())
    assert found
    assert found.failure_class is FailureClass.BUILD_MISMATCH
    assert {"llama.cpp 6751 (01d2bdc2b)", "llama.cpp 6792 (abc)"} == {item.line for item in found.evidence}
