"""The one builder of a diagnosis' inputs for a coordinator."""

from pathlib import Path

from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState, LoadReport, LoadTimings
from harness.contracts.diagnosis import ExitStatus, Signal
from harness.contracts.plan import BackendShare, Plan
from harness.diagnosis.classify import classify
from harness.diagnosis.inputs import BackendSnapshot, NodeEvidence, coordinator_inputs

SHARE = BackendShare(
    node="node1",
    endpoint="10.0.0.11:50052",
    available_bytes=1,
    weight=1,
    layers=31,
    model_bytes=1,
    kv_bytes=1,
    compute_bytes=1,
)
PLAN = Plan(model="m", model_path="/m.gguf", file_bytes=1, layers_total=31, shares=[SHARE])
KILLED = ExitStatus(time_ns=9, signal=9)
STOP = Signal(name="SIGKILL", time_ns=8, reason="stalled", requests_in_flight=1)
STATE = CoordinatorState(
    phase=CoordinatorPhase.ENDED,
    argv=["--rpc", SHARE.endpoint],
    plan=PLAN,
    timings=LoadTimings(requested_ns=1, exec_ns=2),
    report=LoadReport(offloaded=0, layers_total=31),
    signals=[STOP],
    exit=KILLED,
)


def test_ended_coordinator_keeps_its_end_and_what_its_nodes_know() -> None:
    inputs = coordinator_inputs(
        STATE,
        "head",
        None,
        {
            "head": NodeEvidence(oom_kills=0, build="6751 (a)", server_build="6792 (b)"),
            "node1": NodeEvidence(rpc_restarts=2, rpc_started_ns=1, full_disk="full", journal=["a line"]),
        },
    )
    assert (inputs.node, inputs.running, inputs.exit, inputs.signals) == ("head", False, KILLED, [STOP])
    assert (inputs.plan, inputs.report, inputs.expect_distributed) == (PLAN, STATE.report, True)
    assert (inputs.began_ns, inputs.backends_began_ns) == (2, {"node1": 1})
    assert inputs.oom_kills == {"head": 0}, "no kill was counted there; of node1 nobody knows"
    assert inputs.units == {"node1": {"NRestarts": "2"}}
    assert inputs.builds == {"head": "6751 (a)", "head (llama-server)": "6792 (b)"}
    assert (inputs.journal, inputs.full_disks) == ({"node1": ["a line"]}, {"node1": "full"})


def test_waiting_coordinator_is_judged_as_it_was_before_it_was_ended() -> None:
    stopped = BackendSnapshot(state="T", peer="10.0.0.1:40000")
    inputs = coordinator_inputs(STATE, "head", None, {"node1": NodeEvidence(backend=stopped)}, waiting=True)
    assert classify(inputs).failure_class == "backend_stalled"


def test_running_coordinator_is_checked_for_distribution() -> None:
    up = STATE.model_copy(update={"exit": None, "signals": []})
    assert classify(coordinator_inputs(up, "head", None, {}, running=True)).failure_class == "not_distributed"
    local = up.model_copy(update={"plan": PLAN.model_copy(update={"n_gpu_layers": 0})})
    assert classify(coordinator_inputs(local, "head", None, {}, running=True)).failure_class == "unknown"


def test_log_is_read_by_its_file_name_where_it_exists(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    assert coordinator_inputs(STATE, "head", log, {}).logs == {}
    log.write_text("text")
    assert coordinator_inputs(STATE, "head", log, {}).logs == {"server.log": log}
