"""What a load will take, what earlier loads taught, and what would make a refused model fit."""

import re

import pytest
from harness.errors import HarnessError
from harness.planner.calibration import Calibration, NodeSpeed
from harness.planner.device_capacity import BackendMemory
from harness.planner.forecast import Rates, forecast_load
from harness.planner.learned import compute_buffers, learn, load_shape
from harness.planner.placement import head_share, make_plan
from tests.unit.model_headers import GIB, MIB, backends, model


def test_own_backend_of_the_head_node_crosses_no_wire_and_cached_bytes_neither() -> None:
    facts = model("13b", "Q4_0")
    plan = make_plan(facts, backends(4, 4, 4))
    sizes = {share.node: share.model_bytes for share in plan.shares}
    cold = forecast_load(facts, plan, "node2", Rates(link_bytes_per_s={"node1": 1e9}))
    assert cold.wire_bytes == {"node1": sizes["node1"], "node3": sizes["node3"]}
    assert cold.wire_s == pytest.approx(sizes["node1"] / 1e9 + sizes["node3"] / 125e6)
    warm = forecast_load(facts, plan, "node2", Rates(), cached=dict.fromkeys(sizes, 1 << 40))
    assert warm.wire_bytes == {"node1": 0, "node3": 0}
    assert warm.load_s == max(warm.disk_s, warm.hash_s)
    assert cold.swap_bytes == {}


def test_swap_is_forecast_where_a_given_plan_overfills_a_node() -> None:
    facts = model("13b", "Q4_0")
    plan = make_plan(facts, backends(4, 4, 4))
    plan.shares[1].available_bytes = plan.shares[1].total_bytes - 100 * MIB
    assert forecast_load(facts, plan, "node1", Rates()).swap_bytes == {"node2": 100 * MIB}


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
    make_plan(model("13b", "Q4_0"), [*backends(4, 4), BackendMemory("new", "10.0.0.9:1", int(size * GIB))])
    smaller = BackendMemory("new", "10.0.0.9:1", int((size - 0.0625) * GIB))
    with pytest.raises(HarnessError):
        make_plan(model("13b", "Q4_0"), [*backends(4, 4), smaller])


def test_devices_of_one_backend_are_filled_each_by_itself() -> None:
    gpus = [BackendMemory("gpu", "10.0.0.4:50052", 3 * GIB, device=n) for n in (0, 1)]
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
    assert {node: s.bytes_per_s for node, s in both.speeds(6751).items()} == {"a": 3e9, "b": 2e9}
    assert both.speeds(6792) == {}
