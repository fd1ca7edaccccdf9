"""Placement by speed: less time per token within memory, llama.cpp's split where nodes are equal."""

import pytest
from harness.planner.device_capacity import DeviceCapacity
from harness.planner.placement import make_plan
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.model_headers import GIB, backends, model


def nodes(*given: tuple[float, float]) -> list[DeviceCapacity]:
    """Devices of (GiB, GB/s)."""
    return [
        DeviceCapacity(f"node{i}", f"10.0.0.{i}:50052", int(gib * GIB), bytes_per_s=rate * 1e9)
        for i, (gib, rate) in enumerate(given, 1)
    ]


def layers(plan_nodes: list[DeviceCapacity], shape: str = "13b", kind: str = "Q4_0") -> dict[str, int]:
    plan = make_plan(model(shape, kind), plan_nodes)
    return {share.node: share.layers for share in plan.shares}


def test_equal_nodes_keep_the_split_of_llama_cpp() -> None:
    by_memory = make_plan(model("13b", "Q4_0"), backends(4, 4, 4, 4))
    assert layers(nodes((4, 10), (4, 10), (4, 10), (4, 10))) == {s.node: s.layers for s in by_memory.shares}


def test_noise_between_equal_nodes_changes_nothing() -> None:
    assert layers(nodes((4, 10), (4, 10.2), (4, 9.9), (4, 10.1))) == layers(nodes(*[(4, 10)] * 4))


def test_slow_node_is_left_out_where_the_others_hold_the_model() -> None:
    plan = make_plan(model("13b", "Q4_0"), nodes((4, 10), (4, 10), (4, 10), (4, 2.5)))
    assert [share.node for share in plan.shares] == ["node1", "node2", "node3"]
    assert max(s.layers for s in plan.shares) - min(s.layers for s in plan.shares) <= 1
    assert any("node4 left out" in note for note in plan.notes)
    assert plan.token_s == pytest.approx(sum(s.model_bytes for s in plan.shares) / 10e9)


def test_slow_node_gets_only_what_the_others_cannot_hold() -> None:
    given = nodes((3.5, 10), (3.5, 10), (4, 1))
    plan = make_plan(model("13b", "Q4_0"), given)
    assert plan.shares[2].layers < min(plan.shares[0].layers, plan.shares[1].layers)
    for share, node in zip(plan.shares, given, strict=True):
        assert share.total_bytes <= node.usable_bytes
    for share, node in zip(plan.shares[:2], given, strict=False):
        assert share.total_bytes * (share.layers + 1) / share.layers > node.usable_bytes


def test_unknown_speed_of_one_node_leaves_the_split_to_memory() -> None:
    mixed = [*nodes((4, 10), (4, 1)), *backends(0, 0, 4)[2:]]
    plan = make_plan(model("13b", "Q4_0"), mixed)
    assert len(plan.shares) == 3
    assert plan.token_s is None
    assert plan.notes == []


@given(st.lists(st.tuples(st.floats(2, 12), st.floats(0.5, 20)), min_size=2, max_size=6))
def test_split_by_speed_is_never_slower_than_by_memory_nor_too_large(
    given: list[tuple[float, float]],
) -> None:
    devices = nodes(*given)
    if sum(d.usable_bytes for d in devices) < 14 * GIB:
        devices = nodes(*given, (14, 1))
    plan = make_plan(model("13b", "Q4_0"), devices)
    plain = make_plan(
        model("13b", "Q4_0"), [DeviceCapacity(d.node, d.endpoint, d.available_bytes) for d in devices]
    )
    by_node = {d.node: d for d in devices}
    slow_s = sum(by_node[s.node].seconds(s.model_bytes) for s in plain.shares)
    assert plan.token_s is not None
    assert plan.token_s <= slow_s * 1.0001
    usable = {d.node: d.usable_bytes for d in devices}
    assert all(share.total_bytes <= usable[share.node] for share in plan.shares)
    assert sum(share.layers for share in plan.shares) == plan.layers_total
