"""Sizing a model's parts and placing its layers as llama.cpp will."""

from itertools import product

import pytest
from harness.errors import HarnessError
from harness.planner.device_capacity import DeviceCapacity
from harness.planner.memory import cache_cells, compute_bytes, kv_bytes, weights
from harness.planner.placement import make_plan, split_layers
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.model_headers import GIB, MIB, backends, model

# MiB that llama-server 6751 printed for each backend on loopback, context 2048, split by these layers:
# model, KV and compute buffer.
PRINTED = [
    (
        "1b",
        "Q8_0",
        (4, 7, 3, 3),
        (246.56, 431.48, 184.92, 389.45),
        (16, 28, 12, 8),
        (62.01, 58.01, 58.01, 254.50),
    ),
    (
        "13b",
        "Q4_0",
        (9, 16, 8, 8),
        (1531.76, 2723.12, 1361.56, 1319.62),
        (360, 640, 320, 280),
        (117.01, 103.01, 103.01, 113.01),
    ),
    (
        "70b",
        "TQ1_0",
        (17, 32, 16, 16),
        (2927.19, 5510.00, 2755.00, 3404.80),
        (136, 256, 128, 120),
        (222.01, 202.01, 202.01, 266.50),
    ),
]


# MiB that llama-server 11549 printed for compute buffers on loopback: first backend, any other.
PRINTED_11549 = [
    ("1b", "Q8_0", 2048, (120.05, 84.04)),
    ("1b", "Q8_0", 4096, (128.05, 92.04)),
    ("13b", "Q4_0", 2048, (249.05, 159.04)),
]


@pytest.mark.parametrize(("shape", "kind", "context", "printed"), PRINTED_11549)
def test_newer_builds_hold_other_compute_buffers(
    shape: str, kind: str, context: int, printed: tuple[float, float]
) -> None:
    for first, last in product((True, False), repeat=2):
        size = compute_bytes(model(shape, kind), context, 1, first, last, 11549)
        assert size / MIB == pytest.approx(printed[0 if first else 1], rel=0.001)


@pytest.mark.parametrize(("shape", "kind", "layers", "weight", "cache", "compute"), PRINTED)
def test_forecast_is_what_llama_server_prints(
    shape: str,
    kind: str,
    layers: tuple[int, ...],
    weight: tuple[float, ...],
    cache: tuple[float, ...],
    compute: tuple[float, ...],
) -> None:
    plan = make_plan(model(shape, kind), backends(5.6, 11.3, 5.5, 5.8), context=2048)
    assert tuple(s.layers for s in plan.shares) == layers
    assert [s.model_bytes / MIB for s in plan.shares] == pytest.approx(weight, rel=1e-3)
    assert [s.kv_bytes / MIB for s in plan.shares] == pytest.approx(cache, rel=1e-3)
    for share, printed in zip(plan.shares, compute, strict=True):
        # An estimate from above, by no more than 10%.
        assert printed * 0.999 <= share.compute_bytes / MIB <= printed * 1.1
    assert plan.distributed


@pytest.mark.parametrize(
    ("splits", "layers", "offloaded", "expected"),
    [
        ([1, 1, 1, 1], 17, 99, [5, 4, 4, 4]),
        ([5.6, 11.3, 5.5, 5.8], 17, 99, [4, 7, 3, 3]),
        ([5.6, 11.3, 5.5, 5.8], 81, 99, [17, 32, 16, 16]),
        ([1, 0, 1], 10, 99, [5, 0, 5]),
        ([3, 1], 41, 20, [15, 5]),
        ([7], 41, 99, [41]),
    ],
)
def test_layers_follow_tensor_split(
    splits: list[float], layers: int, offloaded: int, expected: list[int]
) -> None:
    assert split_layers(splits, layers, offloaded) == expected


@given(st.lists(st.integers(0, 40), min_size=1, max_size=16).filter(any))
def test_layer_counts_as_split_are_placed_as_counted(counts: list[int]) -> None:
    """The plan's weights are its layer counts: llama.cpp must land on exactly those."""
    assert split_layers(counts, sum(counts), 10_000) == counts


def test_plan_weights_reproduce_its_layers() -> None:
    plan = make_plan(model("70b", "TQ1_0"), backends(5.6, 11.3, 5.5, 5.8))
    layers = [s.layers for s in plan.shares]
    assert split_layers([s.weight for s in plan.shares], plan.layers_total, plan.n_gpu_layers) == layers


def test_embedding_stays_with_the_coordinator_and_tied_output_is_copied() -> None:
    tied, apart = weights(model("1b", "Q8_0")), weights(model("13b", "Q4_0"))
    assert tied.input == 128256 * 2048 * 34 // 32
    assert tied.output == tied.input + 2048 * 4
    assert apart.output == 32016 * 5120 // 256 * 210 + 5120 * 4
    assert apart.input == 32016 * 5120 * 18 // 32
    assert len(set(apart.layers)) == 1


def test_all_bytes_are_placed_once() -> None:
    facts = model("13b", "Q4_0")
    plan = make_plan(facts, backends(8, 8, 8))
    assert sum(s.model_bytes for s in plan.shares) + weights(facts).input == facts.tensor_bytes


@pytest.mark.parametrize(
    ("context", "parallel", "cells"), [(2048, 1, 2048), (2000, 1, 2048), (4096, 3, 4608), (100, 1, 256)]
)
def test_cache_is_padded_for_each_sequence(context: int, parallel: int, cells: int) -> None:
    assert cache_cells(context, parallel) == cells


def test_cache_follows_heads_and_type() -> None:
    assert kv_bytes(model("70b", "TQ1_0"), 2048)[0] == 2 * 8 * 128 * 2048 * 2
    assert kv_bytes(model("70b", "TQ1_0"), 2048, kv_type="q8_0")[0] == 2 * 8 * 128 * 2048 * 34 // 32
    varied = model("tiny", **{"llama.attention.head_count_kv": [4, 2, 0, 1]})
    assert [b // (2 * 64 * 256 * 2) for b in kv_bytes(varied, 256)] == [4, 2, 0, 1]


def test_compute_buffer_grows_with_context_and_holds_the_logits() -> None:
    facts = model("70b", "TQ1_0")
    assert compute_bytes(facts, 8192, 1, True, False) > compute_bytes(facts, 2048, 1, True, False)
    assert compute_bytes(facts, 2048, 1, False, True) > 128256 * 512 * 4


def test_architecture_that_cannot_be_sized_is_refused() -> None:
    with pytest.raises(HarnessError, match=r"cannot size the cache .*ssm\.state_size"):
        kv_bytes(model("tiny", **{"llama.ssm.state_size": 16}), 2048)
    with pytest.raises(HarnessError, match="one of 3 parts"):
        weights(model("tiny", **{"split.count": 3}))
    assert weights(model("tiny", **{"split.count": "three"})).layers
    with pytest.raises(HarnessError, match="no KV cache type 'q7'"):
        kv_bytes(model("tiny"), 2048, kv_type="q7")


def test_model_that_does_not_fit_is_refused_with_what_is_missing() -> None:
    with pytest.raises(HarnessError) as refused:
        make_plan(model("70b", "TQ1_0"), backends(5.6, 5.5))
    line = str(refused.value)
    assert "70b-tq1_0 with context 2048 needs" in line
    assert "node1 5.24 GiB, node2 5.14 GiB" in line
    assert "are missing; " in line


def test_what_one_node_cannot_hold_is_refused_though_the_sum_would_do() -> None:
    many = [DeviceCapacity(f"n{i}", f"10.0.0.{i}:1", 1560 * MIB) for i in range(15)]
    with pytest.raises(HarnessError, match=r"whole layers of up to .* do not fit .*, \.\.\. and 7 more"):
        make_plan(model("70b", "TQ1_0"), many)


def test_no_more_devices_are_used_than_one_coordinator_can_use() -> None:
    many = [DeviceCapacity(f"n{i}", f"10.0.0.{i}:1", (2 if i in (3, 7) else 4) * GIB) for i in range(17)]
    plan = make_plan(model("13b", "Q4_0"), many)
    assert len(plan.shares) == 15
    assert plan.notes == ["n3, n7 left out: one coordinator can use 15 RPC devices, and 17 are selected"]
    assert len(make_plan(model("13b", "Q4_0"), many, n_gpu_layers=0).shares) == 15


def test_backend_is_left_out_with_all_its_devices() -> None:
    gpus = [DeviceCapacity("gpu", "10.0.1.1:1", GIB, device=n) for n in (0, 1)]
    many = [DeviceCapacity(f"n{i}", f"10.0.0.{i}:1", 4 * GIB) for i in range(14)]
    plan = make_plan(model("13b", "Q4_0"), [*gpus, *many])
    assert {share.node for share in plan.shares} == {f"n{i}" for i in range(14)}


def test_refusal_over_the_limit_says_that_more_small_nodes_do_not_help() -> None:
    many = [DeviceCapacity(f"n{i}", f"10.0.0.{i}:1", 800 * MIB) for i in range(60)]
    with pytest.raises(HarnessError, match=r"add one node with at least .* and 37 more left out"):
        make_plan(model("70b", "TQ1_0"), many)


def test_split_that_overfills_a_node_is_balanced_instead() -> None:
    facts = model("70b", "TQ1_0")
    # By memory alone the last node would get its share of layers and, on top, the large output matrix.
    tight = backends(5.6, 5.6, 5.6, 1.9)
    by_memory = split_layers([b.available_bytes / MIB for b in tight], 81, 99)
    plan = make_plan(facts, tight)
    assert [s.layers for s in plan.shares] != by_memory
    assert sum(s.layers for s in plan.shares) == 81
    for share, backend in zip(plan.shares, tight, strict=True):
        assert share.total_bytes <= backend.usable_bytes
    parts = [s.total_bytes / b.usable_bytes for s, b in zip(plan.shares, tight, strict=True)]
    assert max(parts[:3]) - min(parts[:3]) < 0.1


def test_reserve_of_a_node_is_left_to_it() -> None:
    node = backends(4)[0]
    assert node.usable_bytes == 4 * GIB - 256 * MIB - int(4 * GIB * 0.02)
    assert DeviceCapacity("n", "e", 100, reserve_bytes=300).usable_bytes == 0


def test_chosen_nodes_only_in_backend_order() -> None:
    plan = make_plan(model("13b"), backends(8, 8, 8), nodes=["node3", "node1"])
    assert [s.node for s in plan.shares] == ["node1", "node3"]
    with pytest.raises(HarnessError, match=r"no backend on node 'node9'; backends are on: node1, node2"):
        make_plan(model("13b"), backends(8, 8), nodes=["node9"])
    with pytest.raises(HarnessError, match="no backends"):
        make_plan(model("13b"), [])


def test_zero_gpu_layers_places_nothing_and_refuses_nothing() -> None:
    plan = make_plan(model("70b", "TQ1_0"), backends(1, 1), n_gpu_layers=0)
    assert [s.layers for s in plan.shares] == [0, 0]
    assert [s.total_bytes for s in plan.shares] == [0, 0]
    assert all(s.weight > 0 for s in plan.shares)
    assert not plan.distributed


def test_part_of_the_layers_are_the_last_ones() -> None:
    facts = model("13b")
    plan = make_plan(facts, backends(8, 8), n_gpu_layers=11)
    parts = weights(facts)
    assert sum(s.layers for s in plan.shares) == 11
    assert sum(s.model_bytes for s in plan.shares) == sum(parts.layers[-10:]) + parts.output


def test_more_layers_than_ninety_nine_are_all_offloaded() -> None:
    deep = model("tiny", **{"llama.block_count": 120})
    plan = make_plan(deep, backends(8))
    assert plan.n_gpu_layers == plan.layers_total == 121
