"""Drained backends: which a load may use, and what a restart keeps."""

from pathlib import Path

import pytest
from harness.contracts.plan import BackendShare, LoadRequest, Plan
from harness.router.api.health import not_ready
from harness.router.config import RouterConfig
from harness.router.drained import DrainedNodes
from harness.router.errors import RouterError


def test_load_is_planned_on_the_other_backends_in_their_order() -> None:
    drained = DrainedNodes(["a", "b", "c"])
    request = LoadRequest(model="m")
    assert drained.chosen(request) is request
    drained.add("b")
    assert drained.chosen(request).nodes == ["a", "c"]
    assert request.nodes is None
    drained.remove("b")
    assert drained.chosen(request).nodes is None


def test_load_that_names_a_drained_backend_is_refused() -> None:
    drained = DrainedNodes(["a", "b"])
    drained.add("b")
    with pytest.raises(RouterError, match=r"b: drained; undrain") as refused:
        drained.chosen(LoadRequest(model="m", nodes=["a", "b"]))
    assert refused.value.status == 409
    assert drained.chosen(LoadRequest(model="m", nodes=["a"])).nodes == ["a"]


def test_every_backend_drained_is_said_and_not_ready(tmp_path: Path) -> None:
    drained = DrainedNodes(["a"])
    drained.add("a")
    with pytest.raises(RouterError, match="every backend is drained") as refused:
        drained.chosen(LoadRequest(model="m"))
    assert refused.value.status == 503
    config = RouterConfig.model_validate(
        {"address": "10.0.0.1", "backends": [{"node": "a", "endpoint": "10.0.0.1:50052", "memory_bytes": 1}]}
    )
    assert not_ready(config, closing=False, drained=drained) == [drained.blocked]


def test_names_outlive_the_router_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    DrainedNodes(["a", "b"], tmp_path).add("b")
    again = DrainedNodes(["a", "b"], tmp_path)
    assert again.names == ["b"]
    with pytest.raises(RouterError, match="no backend on x; there are: a, b"):
        again.add("a", "x")
    with pytest.raises(RouterError, match="no backend on x; there are: a, b"):
        again.remove("b", "x")
    assert again.names == ["b"]
    assert DrainedNodes(["a"], tmp_path).names == []
    again.remove("b")
    assert DrainedNodes(["a", "b"], tmp_path).names == []


def test_damaged_file_stops_loads_until_it_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "drained.json").write_text('["a"')
    drained = DrainedNodes(["a", "b"], tmp_path)
    with pytest.raises(RouterError, match=r"drained\.json is damaged") as refused:
        drained.chosen(LoadRequest(model="m"))
    assert refused.value.status == 503
    config = RouterConfig.model_validate(
        {"address": "10.0.0.1", "backends": [{"node": "a", "endpoint": "10.0.0.1:50052", "memory_bytes": 1}]}
    )
    assert not_ready(config, closing=False, drained=drained) == [drained.unreadable]
    drained.remove("b")
    assert drained.chosen(LoadRequest(model="m")).nodes is None
    assert DrainedNodes(["a", "b"], tmp_path).blocked is None


@pytest.mark.parametrize("content", ['"a"', '{"a": 1}', "[1]", "\x00"])
def test_anything_but_a_list_of_names_is_damage(tmp_path: Path, content: str) -> None:
    (tmp_path / "drained.json").write_text(content)
    assert DrainedNodes(["a"], tmp_path).unreadable


def test_folder_that_cannot_be_looked_into_is_damage(tmp_path: Path) -> None:
    assert DrainedNodes(["a"], tmp_path / ("n" * 300)).unreadable


def test_plan_with_a_drained_node_is_refused_and_kept_settings_lose_it() -> None:
    drained = DrainedNodes(["a", "b"])
    share = BackendShare(
        node="b", endpoint="10.0.0.2:1", available_bytes=1, weight=1, layers=1, model_bytes=1, kv_bytes=0,
        compute_bytes=0,
    )  # fmt: skip
    plan = Plan(model="m", model_path="/m", file_bytes=1, layers_total=1, shares=[share], context=512)
    by_plan = LoadRequest(model="m", plan=plan, context=512)
    by_nodes = LoadRequest(model="m", nodes=["a", "b"])
    assert drained.available(by_plan) is by_plan
    drained.add("b")
    with pytest.raises(RouterError, match="b: drained") as refused:
        drained.chosen(by_plan)
    assert (refused.value.status, refused.value.error_class) == (409, "node_drained")
    assert drained.available(by_plan) == LoadRequest(model="m", context=512)
    assert drained.available(by_nodes).nodes == ["a"]
    assert drained.available(LoadRequest(model="m", nodes=["b"])).nodes is None
