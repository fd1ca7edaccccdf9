from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness.contracts.plan import LoadRequest, Plan
from harness.llama.gguf import GgufModel, Tensor
from harness.monitor.sample import Sample
from harness.router.config import RouterConfig
from harness.router.errors import RouterError
from harness.router.models.catalogue import Catalogue
from harness.router.models.command_line import check_flags
from harness.router.models.planner import Planner
from pydantic import ValidationError

GIB = 1 << 30
LAYERS = 4


def model(layer_bytes: int = GIB // 8) -> GgufModel:
    tensors = [Tensor(f"blk.{n}.ffn_up.weight", "Q8_0", (64, 64), layer_bytes, 0) for n in range(LAYERS)]
    tensors += [Tensor(name, "Q8_0", (64, 100), 6800, 0) for name in ("token_embd.weight", "output.weight")]
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": LAYERS,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 64,
        "llama.context_length": 2048,
        "llama.attention.head_count": 2,
    }
    return GgufModel(Path("/models/m.gguf"), layer_bytes * LAYERS, metadata, tuple(tensors))


CONFIG = RouterConfig.model_validate(
    {
        "address": "10.0.0.1",
        "backends": [
            {"node": node, "endpoint": f"10.0.0.{n}:50052", "memory_bytes": 2 * GIB}
            for n, node in enumerate(("a", "b"), 1)
        ],
    }
)


async def _no_samples(nodes: Sequence[str]) -> Mapping[str, Sample]:
    return {}


def planned(request: LoadRequest, header: GgufModel) -> Plan:
    check_flags(CONFIG.llama_server, request.flags)
    return Planner(CONFIG, Catalogue(Path("/nowhere")), _no_samples).plan(request, header, {})


def refusal(request: dict[str, Any], header: GgufModel | None = None) -> RouterError:
    with pytest.raises(RouterError) as refused:
        planned(LoadRequest.model_validate({"model": "m"} | request), header or model())
    return refused.value


def test_automatic_plan_uses_every_backend_and_all_layers() -> None:
    plan = planned(LoadRequest(model="m"), model())
    assert [share.node for share in plan.shares] == ["a", "b"]
    assert sum(share.layers for share in plan.shares) == plan.layers_total == LAYERS + 1
    assert plan.distributed


def test_chosen_nodes_and_offloaded_layers_reach_the_plan() -> None:
    plan = planned(LoadRequest(model="m", nodes=["b"], n_gpu_layers=0, context=512), model())
    assert [share.node for share in plan.shares] == ["b"]
    assert (plan.n_gpu_layers, plan.context, plan.distributed) == (0, 512, False)


def test_given_plan_is_taken_as_it_is() -> None:
    given = planned(LoadRequest(model="m"), model())
    given.shares[0].weight = 0.25
    assert planned(LoadRequest(model="m", plan=given), model()) == given


def test_plan_that_reaches_for_a_stranger_is_refused() -> None:
    given = planned(LoadRequest(model="m"), model())
    given.shares[1].endpoint = "203.0.113.9:22"
    error = refusal({"plan": given.model_dump()})
    assert (error.status, error.error_class) == (400, "bad_plan")
    assert "203.0.113.9:22" in error.message


def test_plan_for_another_file_is_refused() -> None:
    given = planned(LoadRequest(model="m"), model())
    given.model_path = "/etc/shadow"
    assert refusal({"plan": given.model_dump()}).error_class == "bad_plan"


def test_unknown_node_is_named_beside_the_known_ones() -> None:
    error = refusal({"nodes": ["z"]})
    assert (error.status, error.error_class) == (400, "unknown_node")
    assert error.message == "no backend on z; there are: a, b"


def test_flag_that_the_plan_sets_is_refused() -> None:
    assert refusal({"flags": ["--rpc", "203.0.113.9:1"]}).error_class == "bad_arguments"


def test_model_that_does_not_fit_is_refused_with_the_figures() -> None:
    error = refusal({}, model(layer_bytes=3 * GIB))
    assert (error.status, error.error_class) == (507, "does_not_fit")
    assert "GiB" in error.message


def changed(plan: Plan, share: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A plan as JSON, with changes to it and to its first share."""
    content = plan.model_dump()
    content["shares"][0] |= share or {}
    return content | changes


@pytest.mark.parametrize(
    ("share", "changes"),
    [
        ({}, {"n_gpu_layers": -5}),
        ({}, {"context": -1}),
        ({}, {"context": 10**12}),
        ({}, {"parallel": 10**9}),
        ({}, {"parallel": 0}),
        ({}, {"kv_type": "--log-file"}),
        ({}, {"layers_total": -1}),
        ({}, {"file_bytes": -1}),
        ({}, {"shares": []}),
        ({"weight": -1}, {}),
        ({"weight": float("nan")}, {}),
        ({"weight": float("inf")}, {}),
        ({"layers": -1}, {}),
        ({"model_bytes": -1}, {}),
        ({"kv_bytes": -1}, {}),
        ({"compute_bytes": 1 << 70}, {}),
        ({"device": -1}, {}),
        ({"endpoint": "10.0.0.1:50052,10.0.0.9:1"}, {}),
    ],
)
def test_plan_out_of_its_ranges_is_refused(share: dict[str, Any], changes: dict[str, Any]) -> None:
    plan = changed(planned(LoadRequest(model="m"), model()), share, **changes)
    with pytest.raises(ValidationError):
        LoadRequest.model_validate({"model": "m", "plan": plan})


def test_plan_of_more_devices_than_a_coordinator_takes_is_refused() -> None:
    plan = planned(LoadRequest(model="m"), model()).model_dump()
    plan["shares"] = plan["shares"][:1] * 16
    with pytest.raises(ValidationError, match="at most 15 items"):
        LoadRequest.model_validate({"model": "m", "plan": plan})


@pytest.mark.parametrize(
    ("share", "changes", "message"),
    [
        ({"layers": 1}, {}, "its shares have 3 layers, and 5 are to be offloaded"),
        ({"weight": 0}, {}, None),
        ({}, {"layers_total": 3}, "its shares have 5 layers, and 3 are to be offloaded"),
        ({"layers": 12}, {"layers_total": 14}, "a model of 14 layers; m has 5"),
        ({"endpoint": "10.0.0.2:50052"}, {}, "a device has two shares"),
    ],
)
def test_plan_whose_sums_do_not_agree_is_refused(
    share: dict[str, Any], changes: dict[str, Any], message: str | None
) -> None:
    plan = changed(planned(LoadRequest(model="m"), model()), share, **changes)
    if message is None:
        planned(LoadRequest.model_validate({"model": "m", "plan": plan}), model())
        plan["shares"][1]["weight"] = 0
        message = "its shares have no weight"
    error = refusal({"plan": plan})
    assert (error.status, error.error_class) == (400, "bad_plan")
    assert message in error.message
