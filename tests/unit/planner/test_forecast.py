"""What a load will take, what earlier loads taught, and what would make a refused model fit."""

import re

import pytest
from harness.errors import HarnessError
from harness.planner.device_capacity import Calibration, DeviceCapacity, NodeSpeed
from harness.planner.forecast import DEFAULT_RATES, Rates, forecast_load
from harness.planner.memory import compute_buffers, learn, load_shape
from harness.planner.placement import head_share, make_plan
from tests.unit.model_headers import GIB, MIB, backends, model


def test_own_backend_of_the_head_node_uses_no_link() -> None:
    facts = model("13b", "Q4_0")
    plan = make_plan(facts, backends(4, 4, 4))
    sizes = {share.node: share.model_bytes for share in plan.shares}
    cast = forecast_load(facts, plan, "node2", Rates(link_bytes_per_s=1e9))
    assert cast.wire_bytes == {"node1": sizes["node1"], "node3": sizes["node3"]}
    assert cast.wire_s == pytest.approx((sizes["node1"] + sizes["node3"]) / 1e9)
    assert cast.load_s == max(cast.disk_s, cast.hash_s + cast.wire_s)
    assert cast.swap_bytes == {}


def test_cold_load_is_slower_than_the_link_and_a_warm_one_as_fast_as_the_disk() -> None:
    assert 100e6 < DEFAULT_RATES.cold_bytes_per_s < DEFAULT_RATES.link_bytes_per_s
    assert DEFAULT_RATES.warm_bytes_per_s == DEFAULT_RATES.disk_bytes_per_s


def test_swap_is_forecast_where_a_given_plan_overfills_a_node() -> None:
    facts = model("13b", "Q4_0")
    plan = make_plan(facts, backends(4, 4, 4))
    plan.shares[1].available_bytes = plan.shares[1].total_bytes - 100 * MIB
    assert forecast_load(facts, plan, "node1").swap_bytes == {"node2": 100 * MIB}


def test_compute_buffers_of_an_earlier_load_replace_the_estimate() -> None:
    facts = model("13b", "Q4_0")
    plan = make_plan(facts, backends(4, 4, 4))
    shape = load_shape(facts, 6751, 2048, 1, "f16")
    printed = {share.endpoint: size * MIB for share, size in zip(plan.shares, (117, 103, 113), strict=True)}
    learned = learn({}, shape, plan, printed)
    again = make_plan(facts, backends(4, 4, 4), learned=compute_buffers(learned, shape))
    assert [share.compute_bytes // MIB for share in again.shares] == [117, 103, 113]
    assert compute_buffers(learned, load_shape(facts, 6751, 4096, 1, "f16")) == {}
    assert compute_buffers(learned, load_shape(facts, 6792, 2048, 1, "f16")) == {}


def test_undistributed_load_teaches_nothing() -> None:
    facts = model("13b", "Q4_0")
    plan = make_plan(facts, backends(4, 4, 4), n_gpu_layers=0)
    assert learn({}, "shape", plan, {share.endpoint: 1 for share in plan.shares}) == {}


def _refusal(kind: str, *gib: float, **asked: int) -> str:
    with pytest.raises(HarnessError) as refused:
        make_plan(model("13b", kind), backends(*gib), **asked)  # type: ignore[arg-type]
    return str(refused.value)


def test_refusal_names_a_context_that_fits() -> None:
    line = _refusal("Q4_0", 4, 4, 4, context=32768)
    found = re.search(r"a context of (\d+) fits", line)
    assert found
    tokens = int(found[1])
    make_plan(model("13b", "Q4_0"), backends(4, 4, 4), context=tokens)
    with pytest.raises(HarnessError):
        make_plan(model("13b", "Q4_0"), backends(4, 4, 4), context=tokens + 256)


def test_refusal_names_a_cache_type_that_fits() -> None:
    line = _refusal("Q4_0", 5, 5, 5, context=10240)
    assert "a KV cache of type q8_0 fits" in line
    make_plan(model("13b", "Q4_0"), backends(5, 5, 5), context=10240, kv_type="q8_0")


def test_refusal_says_how_large_one_more_node_must_be() -> None:
    line = _refusal("Q4_0", 4, 4, context=2048)
    found = re.search(r"add one node with at least ([\d.]+) GiB available", line)
    assert found
    size = float(found[1])
    make_plan(model("13b", "Q4_0"), [*backends(4, 4), DeviceCapacity("new", "10.0.0.9:1", int(size * GIB))])
    smaller = DeviceCapacity("new", "10.0.0.9:1", int((size - 0.0625) * GIB))
    with pytest.raises(HarnessError):
        make_plan(model("13b", "Q4_0"), [*backends(4, 4), smaller])


def test_devices_of_one_backend_are_filled_each_by_itself() -> None:
    gpus = [DeviceCapacity("gpu", "10.0.0.4:50052", 3 * GIB, device=n) for n in (0, 1)]
    plan = make_plan(model("13b", "Q4_0"), [*backends(4), *gpus])
    assert [(share.node, share.device) for share in plan.shares] == [("node1", 0), ("gpu", 0), ("gpu", 1)]
    assert plan.endpoints == ["10.0.0.1:50052", "10.0.0.4:50052"]
    assert all(share.left_bytes > 0 for share in plan.shares)


def test_head_share_holds_the_token_embedding() -> None:
    assert head_share(model("70b", "TQ1_0")) > 128256 * 8192 // 256 * 54


def test_calibration_holds_for_its_build_only_and_newer_values_replace() -> None:
    def speed(node: str, rate: float) -> NodeSpeed:
        return NodeSpeed(node=node, bytes_per_s=rate, build=6751, model="1b", measured_ns=1)

    both = Calibration(nodes=[speed("a", 1e9), speed("b", 2e9)]).with_nodes([speed("a", 3e9)])
    assert both.speeds(6751) == {"a": 3e9, "b": 2e9}
    assert both.speeds(6792) == {}
