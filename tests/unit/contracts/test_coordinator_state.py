"""Which load counts as distributed, from what llama-server printed and from the plan."""

import pytest
from harness.contracts.coordinator_state import (
    BackendBuffers,
    LoadReport,
    distribution_gap,
    missing_backends,
    rpc_endpoint,
)
from harness.contracts.plan import BackendShare, Plan


def plan(*layers: int) -> Plan:
    """A plan over node1, node2, ... with so many layers on each."""
    shares = [
        BackendShare(
            node=f"node{i}",
            endpoint=f"10.0.0.{i}:50052",
            available_bytes=1,
            weight=1,
            layers=count,
            model_bytes=1,
            kv_bytes=1,
            compute_bytes=1,
        )
        for i, count in enumerate(layers, 1)
    ]
    return Plan(model="m", model_path="/m.gguf", file_bytes=1, layers_total=31, shares=shares)


def report(*model_bytes: int, offloaded: int | None = 31) -> LoadReport:
    """A report with one RPC device for each size, and a buffer of the coordinator's own."""
    rpc = [
        BackendBuffers(device=f"RPC0[10.0.0.{i}:50052]", model_bytes=size, compute_bytes=5)
        for i, size in enumerate(model_bytes, 1)
    ]
    local = BackendBuffers(device="CPU_Mapped", model_bytes=7)
    return LoadReport(offloaded=offloaded, layers_total=31, buffers=[local, *rpc])


def test_load_with_all_layers_on_the_planned_backends_is_distributed() -> None:
    assert distribution_gap(report(10, 10), plan(15, 16)) is None
    assert report(10, 10).distributed


@pytest.mark.parametrize(
    ("printed", "gap"),
    [
        (LoadReport(), "the log has no 'offloaded' line"),
        (report(10, 10, offloaded=0), "offloaded 0/31 layers"),
        (report(10, 0), "no model buffer on node2"),
        (report(), "no model buffer on node1, node2"),
    ],
)
def test_first_thing_that_is_missing_is_named(printed: LoadReport, gap: str) -> None:
    assert distribution_gap(printed, plan(15, 16)) == gap
    assert not printed.distributed


def test_backend_without_layers_in_the_plan_may_hold_nothing() -> None:
    assert missing_backends(report(10, 0), plan(31, 0)) == []
    assert distribution_gap(report(10, 0), plan(31, 0)) is None
    assert not report(10, 0).distributed, "without a plan every RPC device has to hold a part"


def test_buffers_of_backends_and_of_the_coordinator_are_told_apart() -> None:
    printed = report(10, 20)
    assert [buffer.model_bytes for buffer in printed.rpc_buffers] == [10, 20]
    assert [buffer.device for buffer in printed.local_buffers] == ["CPU_Mapped"]
    assert printed.rpc_buffers[0].total_bytes == 15


@pytest.mark.parametrize(
    ("device", "endpoint"),
    [
        ("RPC0[10.0.0.1:50052]", "10.0.0.1:50052"),
        ("RPC[10.0.0.1:50052]", "10.0.0.1:50052"),
        ("CPU_REPACK", None),
        ("CUDA0", None),
    ],
)
def test_endpoint_of_a_device(device: str, endpoint: str | None) -> None:
    assert rpc_endpoint(device) == endpoint
