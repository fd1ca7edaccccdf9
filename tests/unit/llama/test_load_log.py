"""Reading a load from llama-server's log, in the formats of old and new builds."""

from pathlib import Path

import pytest
from harness.contracts.plan import BackendShare, Plan
from harness.llama.load_log import (
    PhaseClock,
    assign_nodes,
    load_phase,
    parse_load_log,
)

LOGS = Path(__file__).parents[2] / "data" / "logs"
MIB = 1024 * 1024


def log_lines(name: str) -> list[str]:
    return (LOGS / f"{name}.log").read_text(errors="replace").splitlines()


def plan(*endpoints: str) -> Plan:
    """A plan that gives each endpoint some layers, on nodes node1, node2, ..."""
    shares = [
        BackendShare(
            node=f"node{i}",
            endpoint=endpoint,
            available_bytes=1,
            weight=1,
            layers=10,
            model_bytes=1,
            kv_bytes=1,
            compute_bytes=1,
        )
        for i, endpoint in enumerate(endpoints, 1)
    ]
    return Plan(model="m", model_path="/m.gguf", file_bytes=1, layers_total=31, shares=shares)


PLAN = plan("127.0.0.1:51001", "127.0.0.1:51002")


def new_format(lines: list[str]) -> list[str]:
    """The same lines with the time and level that newer builds print."""
    return [f"0.{i // 1000:02d}.{i % 1000:03d}.408 I {line}" for i, line in enumerate(lines)]


@pytest.fixture(params=["old", "new"])
def distributed(request: pytest.FixtureRequest) -> list[str]:
    lines = log_lines("distributed")
    return lines if request.param == "old" else new_format(lines)


def test_layers_and_build_are_read(distributed: list[str]) -> None:
    report = parse_load_log(distributed)
    assert (report.offloaded, report.layers_total, report.build) == (31, 31, 6751)
    assert report.distributed


def test_each_device_has_its_buffers(distributed: list[str]) -> None:
    buffers = {b.device: b for b in parse_load_log(distributed).buffers}
    assert set(buffers) == {"CPU_Mapped", "RPC0[127.0.0.1:51001]", "RPC0[127.0.0.1:51002]", "CPU"}
    first = buffers["RPC0[127.0.0.1:51001]"]
    assert first.model_bytes == round(33.82 * MIB)
    assert first.kv_bytes == 24 * MIB
    assert first.compute_bytes == round(16.13 * MIB)


def test_log_of_a_newer_build_is_read_to_the_end() -> None:
    lines = log_lines("distributed_11549")
    report = parse_load_log(lines)
    assert (report.build, report.offloaded, report.layers_total) == (11549, 31, 31)
    assert {b.device for b in report.buffers if b.kv_bytes} == {
        "RPC0[127.0.0.1:50151]",
        "RPC0[127.0.0.1:50152]",
    }
    phases = [phase for line in lines if (phase := load_phase(line))]
    assert list(dict.fromkeys(phases)) == ["open", "transfer", "kv", "warmup", "ready"]


def test_layers_kept_on_the_coordinator_are_not_distributed() -> None:
    report = parse_load_log(log_lines("not_distributed"))
    assert (report.offloaded, report.layers_total) == (0, 31)
    assert not report.distributed


def test_buffers_get_the_node_of_their_endpoint(distributed: list[str]) -> None:
    nodes = {b.device: b.node for b in assign_nodes(parse_load_log(distributed), PLAN).buffers}
    assert nodes["RPC0[127.0.0.1:51001]"] == "node1"
    assert nodes["RPC0[127.0.0.1:51002]"] == "node2"
    assert nodes["CPU_Mapped"] is None


def test_second_load_in_one_log_replaces_the_first() -> None:
    first, last = log_lines("distributed"), log_lines("not_distributed")
    assert parse_load_log([*first, *last]) == parse_load_log(last)


def test_buffers_of_several_files_are_summed() -> None:
    line = "load_tensors:   CPU_Mapped model buffer size =    10.50 MiB"
    (buffer,) = parse_load_log([line, line]).buffers
    assert buffer.model_bytes == 21 * MIB


def test_line_behind_progress_dots_is_read() -> None:
    report = parse_load_log(["....load_tensors: CUDA0 model buffer size = 1.00 MiB"])
    assert [b.device for b in report.buffers] == ["CUDA0"]


def test_log_without_a_load_says_nothing() -> None:
    report = parse_load_log(["nothing", "", "\ufffd\x00"])
    assert report.offloaded is None
    assert report.buffers == []
    assert not report.distributed


def test_phases_begin_in_order(distributed: list[str]) -> None:
    seen = dict.fromkeys(p for line in distributed if (p := load_phase(line)))
    assert list(seen) == ["open", "transfer", "kv", "warmup", "ready"]


def test_phases_are_timed_by_arrival(distributed: list[str]) -> None:
    clock = PhaseClock(exec_ns=0)
    arrivals = {"open": 1, "transfer": 3, "kv": 13, "warmup": 14, "ready": 16}
    for line in distributed:
        clock.line(arrivals.get(load_phase(line) or "", 0) * 1_000_000_000, line)
    assert clock.phases == {"connect": 1.0, "open": 2.0, "transfer": 10.0, "kv": 1.0, "warmup": 2.0}


def test_phase_still_running_has_no_time() -> None:
    clock = PhaseClock(exec_ns=0)
    clock.line(5, "load_tensors: loading model tensors, this can take a while... (mmap = true)")
    assert set(clock.phases) == {"connect"}
