"""An end is diagnosed with what the nodes know beside the router's evidence."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from harness.diagnosis.model import ExitStatus, FailureClass
from harness.inventory import Node, parse_inventory
from harness.runs.schema import CoordinatorPhase, CoordinatorState, LoadTimings
from harness.trials import evidence
from harness.trials.context import Context
from harness.trials.samples import Point, Series

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


@pytest.mark.usefixtures("journals")
def test_kill_that_the_kernel_counted_is_an_oom_kill(tmp_path: Path) -> None:
    state = ended(signal=9)
    asyncio.run(evidence.diagnose_with_nodes(context(tmp_path, log="loading\n", kills={"head": 1}), state))
    assert state.diagnosis is not None
    assert state.diagnosis.failure_class is FailureClass.OOM_KILLED
    assert state.diagnosis.evidence[0].line == "OOM kills on head while it ran: 1"


@pytest.mark.usefixtures("journals")
def test_kills_from_before_the_start_explain_nothing(tmp_path: Path) -> None:
    state = ended(signal=9)
    asyncio.run(evidence.diagnose_with_nodes(context(tmp_path, log="loading\n"), state))
    assert state.diagnosis is not None
    assert state.diagnosis.failure_class is FailureClass.UNKNOWN


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


@pytest.mark.usefixtures("journals")
def test_coordinator_that_runs_is_left_alone(tmp_path: Path) -> None:
    state = ended(signal=9).model_copy(update={"exit": None})
    asyncio.run(evidence.diagnose_with_nodes(context(tmp_path, kills={"head": 1}), state))
    assert state.diagnosis is None
