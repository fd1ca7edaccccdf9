"""Every recorded log gets its class, and the line that decides it."""

import json
from pathlib import Path
from typing import Any

import pytest
from harness.contracts.diagnosis import Confidence, Diagnosis, ExitStatus, FailureClass, Signal
from harness.contracts.plan import BackendShare, Plan
from harness.diagnosis.classify import classify
from harness.diagnosis.inputs import BackendSnapshot, Inputs
from harness.llama.load_log import parse_load_log

LOGS = Path(__file__).parents[2] / "data" / "logs"
RECORDED: dict[str, dict[str, Any]] = json.loads((LOGS / "recorded.json").read_text())


def log_lines(name: str) -> list[str]:
    return (LOGS / f"{name}.log").read_text(errors="replace").splitlines()


def recorded(name: str, **other: Any) -> Inputs:
    """Inputs as they were when the log was recorded."""
    entry = RECORDED[name]
    lines = log_lines(name)
    ended = entry.get("exit")
    given: dict[str, Any] = {
        "process": entry["process"],
        "argv": entry["command"].split()[1:],
        "exit": ExitStatus(time_ns=2_000, **ended) if ended else None,
        "running": ended is None,
        "signals": [Signal(time_ns=1_000, reason="test", **sent) for sent in entry["signals"]],
        "logs": {f"{name}.log": lines},
        "report": parse_load_log(lines),
        "expect_distributed": "--rpc" in entry["command"],
        "waiting": "backends" in entry,
        "backends": {node: BackendSnapshot(**seen) for node, seen in entry.get("backends", {}).items()},
        "full_disks": {"here": entry["full_disk"]} if "full_disk" in entry else {},
        "oom_kills": {"here": entry["oom_kills"]} if "oom_kills" in entry else {},
        "journal": {"here": entry["kernel"]} if "kernel" in entry else {},
    }
    return Inputs(**{**given, **other})


def deciding(diagnosis: Diagnosis) -> str:
    first = diagnosis.evidence[0]
    return f"{first.source} {first.line}"


@pytest.mark.parametrize(
    ("name", "expected", "line"),
    [
        ("stopped", "stopped", "SIGTERM sent with 0 request(s) in flight"),
        ("stopped_busy", "stopped_busy", "SIGTERM sent with 1 request(s) in flight"),
        ("stopped_busy_local", "stopped_busy", "SIGTERM sent with 1 request(s) in flight"),
        ("terminated_by_someone", "stopped", "cleaning up before exit"),
        ("backend_lost", "backend_lost", "Remote RPC server crashed or returned malformed response"),
        ("backend_lost_idle", "backend_lost", "Remote RPC server crashed or returned malformed response"),
        ("backend_unreachable", "backend_unreachable", "ended before its first line"),
        ("not_distributed", "not_distributed", "offloaded 0/31 layers"),
        ("distributed", "unknown", ""),
        ("distributed_11549", "unknown", ""),
        ("local", "unknown", ""),
        ("out_of_memory", "out_of_memory", "failed to allocate CPU buffer of size"),
        ("out_of_memory_backend", "out_of_memory", "failed to allocate RPC0[127.0.0.1:51001] buffer"),
        ("out_of_memory_rpc_server", "out_of_memory", "Failed to allocate input buffer of size"),
        ("port_in_use", "port_in_use", "couldn't bind HTTP server socket"),
        ("port_in_use_rpc_server", "port_in_use", "Failed to create server socket"),
        ("bad_arguments", "bad_arguments", "invalid argument: --no-such-flag"),
        ("bad_arguments_value", "bad_arguments", 'error while handling argument "--threads"'),
        ("bad_arguments_rpc_server", "bad_arguments", "unknown argument: --no-such-flag"),
        ("bad_arguments_rpc_server_host", "bad_arguments", "Invalid host address: localhost"),
        ("bad_arguments_rpc_server_device", "bad_arguments", "unknown device: CUDA7"),
        ("model_invalid", "model_invalid", "is not within the file bounds"),
        ("model_invalid_magic", "model_invalid", "invalid magic characters"),
        ("model_invalid_missing", "model_invalid", "failed to open GGUF file 'absent.gguf'"),
        ("model_invalid_architecture", "model_invalid", "unknown model architecture: 'alien'"),
        ("assertion", "assertion", "GGML_ASSERT(hparams.n_expert_used > 0) failed"),
        ("segfault", "segfault", "SIGSEGV"),
        ("illegal_instruction", "illegal_instruction", "SIGILL"),
        ("killed", "unknown", "SIGKILL"),
        ("rpc_version_mismatch", "rpc_version_mismatch", "RPC server version mismatch: 2.0.0"),
        ("sigpipe", "sigpipe", "SIGPIPE"),
        ("backend_stalled", "backend_stalled", "process second rpc-server is stopped (state T)"),
        ("disk_full", "disk_full", "disk here cache: 0 bytes free of"),
        ("oom_killed", "oom_killed", "samples here OOM kills on here while it ran: 1"),
    ],
)
def test_recorded_end_gets_its_class_and_line(name: str, expected: str, line: str) -> None:
    diagnosis = classify(recorded(name))
    assert diagnosis.failure_class == expected
    assert line == "" or line in deciding(diagnosis)


def test_every_recorded_log_is_tested() -> None:
    assert {path.stem for path in LOGS.glob("*.log")} == set(RECORDED)


def test_evidence_names_file_and_line_number() -> None:
    source = classify(recorded("backend_lost")).evidence[0].source
    name, number = source.split(":")
    assert name == "backend_lost.log"
    assert "Remote RPC server" in log_lines(name.removesuffix(".log"))[int(number) - 1]


def test_interrupted_receive_is_ruled_out_as_a_lost_backend() -> None:
    diagnosis = classify(recorded("stopped_busy"))
    assert any(text.startswith("backend_lost: explained by stopped_busy") for text in diagnosis.ruled_out)


def test_signal_sent_after_the_end_explains_nothing() -> None:
    late = Signal(name="SIGTERM", time_ns=3_000, reason="clean up", requests_in_flight=1)
    assert classify(recorded("backend_lost", signals=[late])).failure_class == "backend_lost"


def test_founding_reports_sequence_is_stopped_busy_even_without_our_signals() -> None:
    diagnosis = classify(recorded("stopped_busy_local", signals=[]))
    assert diagnosis.failure_class == FailureClass.STOPPED_BUSY
    assert diagnosis.confidence == Confidence.LIKELY


def test_kill_counted_by_the_kernel_is_an_oom_kill() -> None:
    diagnosis = classify(recorded("killed", node="node3", oom_kills={"node3": 1}))
    assert diagnosis.failure_class == FailureClass.OOM_KILLED
    assert diagnosis.evidence[0].source == "samples node3"


def test_kernel_line_is_evidence_of_an_oom_kill() -> None:
    line = "kernel: Memory cgroup out of memory: Killed process 812 (llama-server) total-vm:9000kB"
    diagnosis = classify(recorded("killed", node="node3", journal={"node3": [line]}))
    assert (diagnosis.failure_class, diagnosis.evidence[0].line) == (FailureClass.OOM_KILLED, line)


def test_oom_kill_on_another_node_does_not_explain_this_kill() -> None:
    diagnosis = classify(recorded("killed", node="node2", oom_kills={"node3": 1}))
    assert diagnosis.failure_class == FailureClass.UNKNOWN


def test_our_own_kill_is_no_oom_kill() -> None:
    ours = Signal(name="SIGKILL", time_ns=1_000, reason="fault trial", requests_in_flight=0)
    assert classify(recorded("killed", signals=[ours], oom_kills={"n": 1})).failure_class == "stopped"


def test_lost_backend_shows_what_its_node_says() -> None:
    diagnosis = classify(
        recorded(
            "backend_lost",
            node="node2",
            oom_kills={"node2": 0, "node3": 2},
            units={"node1": {"ActiveState": "active", "NRestarts": "0"}, "node3": {"NRestarts": "1"}},
        )
    )
    sources = [e.source for e in diagnosis.evidence]
    assert diagnosis.failure_class == "backend_lost"
    assert {"samples node3", "unit node3"} < set(sources)
    assert "unit node1" not in sources


def test_not_distributed_wins_over_the_stop_that_followed() -> None:
    ended = ExitStatus(time_ns=2_000, code=0)
    sent = Signal(name="SIGTERM", time_ns=1_000, reason="not distributed", requests_in_flight=0)
    diagnosis = classify(recorded("not_distributed", running=False, exit=ended, signals=[sent]))
    assert diagnosis.failure_class == "not_distributed"
    assert diagnosis.evidence[0].source == "not_distributed.log:110"


def test_planned_backend_without_a_buffer_is_not_distributed() -> None:
    planned = {"node1": "127.0.0.1:51001", "node2": "10.0.0.9:50052"}
    shares = [
        BackendShare(
            node=node,
            endpoint=endpoint,
            available_bytes=1,
            weight=1,
            layers=10,
            model_bytes=1,
            kv_bytes=1,
            compute_bytes=1,
        )
        for node, endpoint in planned.items()
    ]
    plan = Plan(model="m", model_path="/m.gguf", file_bytes=1, layers_total=31, shares=shares)
    diagnosis = classify(recorded("distributed", plan=plan))
    assert (diagnosis.failure_class, diagnosis.evidence[0].line) == (
        FailureClass.NOT_DISTRIBUTED,
        "no model buffer on node2",
    )


def test_local_run_that_was_wanted_is_not_a_failure() -> None:
    assert classify(recorded("not_distributed", expect_distributed=False)).failure_class == "unknown"


def test_nothing_known_says_what_is_missing() -> None:
    diagnosis = classify(Inputs())
    assert diagnosis.failure_class == FailureClass.UNKNOWN
    assert "exit status" in diagnosis.advice
    assert "log" in diagnosis.advice


@pytest.mark.parametrize("name", sorted(RECORDED))
@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 0.95])
def test_log_cut_anywhere_still_gives_a_class(name: str, part: float) -> None:
    lines = log_lines(name)
    cut = lines[: int(len(lines) * part)]
    diagnosis = classify(recorded(name, logs={"cut.log": cut}, report=parse_load_log(cut)))
    assert diagnosis.failure_class in FailureClass


def two_nodes() -> Plan:
    shares = [
        BackendShare(
            node=node,
            endpoint=f"127.0.0.1:{port}",
            available_bytes=1,
            weight=1,
            layers=10,
            model_bytes=1,
            kv_bytes=1,
            compute_bytes=1,
        )
        for node, port in (("node1", 51001), ("node2", 51002))
    ]
    return Plan(model="m", model_path="/m.gguf", file_bytes=1, layers_total=31, shares=shares)


BEGAN = 100 * 10**9
OLDER = {"node1": BEGAN - 60 * 10**9, "node2": BEGAN - 5 * 10**9}


def test_stop_by_somebody_is_no_lost_backend_where_every_backend_lived_on() -> None:
    given: dict[str, Any] = {"signals": [], "plan": two_nodes(), "began_ns": BEGAN}
    diagnosis = classify(recorded("stopped_busy", **given, backends_began_ns=OLDER))
    assert (diagnosis.failure_class, diagnosis.confidence) == ("stopped_busy", Confidence.LIKELY)
    assert [one.line for one in diagnosis.evidence[1:3]] == [
        "its rpc-server started 60 s before the coordinator",
        "its rpc-server started 5 s before the coordinator",
    ]
    assert diagnosis.ruled_out[0].startswith("backend_lost")
    for others in ({}, OLDER | {"node2": BEGAN + 1}, {"node1": OLDER["node1"]}):
        found = classify(recorded("stopped_busy", **given, backends_began_ns=others))
        assert found.failure_class == "backend_lost", others


def test_connection_that_its_backend_closed_is_a_lost_backend_though_its_process_lives() -> None:
    found = recorded("backend_lost", plan=two_nodes(), began_ns=BEGAN, backends_began_ns=OLDER)
    assert classify(found).failure_class == "backend_lost"


def test_kill_that_is_neither_ours_nor_the_kernels_is_somebodys() -> None:
    diagnosis = classify(recorded("killed", node="node2", oom_kills={"node2": 0}))
    assert (diagnosis.failure_class, diagnosis.confidence) == ("stopped", Confidence.LIKELY)
    assert diagnosis.evidence[0].line == "no OOM kill on node2 while it ran"
    assert "Neither the harness nor the kernel" in diagnosis.advice
