"""Plans of the router against what llama-server then does."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.router_stack import ADMIN_KEY, RouterStack


@pytest.fixture(scope="module")
def stack(
    llama_build: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RouterStack]:
    made = RouterStack(llama_build, smollm2, tmp_path_factory.mktemp("planning"))
    yield made
    made.close()


def _buffers(state: dict[str, Any], kind: str) -> list[int]:
    printed = {b["device"]: b[kind] for b in state["report"]["buffers"] if b["device"].startswith("RPC")}
    return [
        next(size for device, size in printed.items() if share["endpoint"] in device)
        for share in state["plan"]["shares"]
    ]


def test_forecast_is_within_three_percent_of_the_buffers_that_are_printed(stack: RouterStack) -> None:
    stack.reset()
    status, offer = stack.admin("plan", {"model": "smollm2", "context": 2048})
    assert status == 200, offer
    status, state = stack.admin("load", {"model": "smollm2", "context": 2048})
    assert status == 200, state
    assert state["plan"]["shares"] == offer["plan"]["shares"]
    for kind in ("model_bytes", "kv_bytes"):
        planned = [share[kind] for share in offer["plan"]["shares"]]
        assert planned == pytest.approx(_buffers(state, kind), rel=0.03)


def test_compute_buffers_are_exact_once_a_load_has_shown_them(stack: RouterStack) -> None:
    stack.reset()
    _, state = stack.admin("load", {"model": "smollm2", "context": 1024})
    stack.reset()
    _, offer = stack.admin("plan", {"model": "smollm2", "context": 1024})
    assert [s["compute_bytes"] for s in offer["plan"]["shares"]] == _buffers(state, "compute_bytes")


def test_quantised_cache_is_planned_and_loaded(stack: RouterStack) -> None:
    stack.reset()
    asked = {"model": "smollm2", "context": 2048, "kv_type": "q8_0"}
    _, offer = stack.admin("plan", asked)
    status, state = stack.admin("load", asked)
    assert status == 200, state
    planned = [share["kv_bytes"] for share in offer["plan"]["shares"]]
    assert planned == pytest.approx(_buffers(state, "kv_bytes"), rel=0.03)


def test_calibrated_speeds_move_the_layers_and_say_so(stack: RouterStack) -> None:
    stack.reset()
    one = {"build": None, "model": "smollm2", "measured_ns": 1}
    _, known = stack.admin("load", {"model": "smollm2"})
    build = known["report"]["build"]
    one["build"] = build
    rates = [{"node": "node1", "bytes_per_s": 1e9} | one, {"node": "node2", "bytes_per_s": 1e10} | one]
    status, answer = stack.admin("calibration", {"nodes": rates})
    assert status == 200, answer
    _, offer = stack.admin("plan", {"model": "smollm2"})
    assert [share["node"] for share in offer["plan"]["shares"]] == ["node2"]
    assert any("node1 left out" in note for note in offer["plan"]["notes"])
    status, state = stack.admin("load", {"model": "smollm2"})
    assert (status, state["report"]["offloaded"]) == (200, state["report"]["layers_total"])
    connection, answer = stack.send("/admin/calibration", key=ADMIN_KEY, method="DELETE")
    assert json.load(answer)["nodes"] == []
    connection.close()
    _, offer = stack.admin("plan", {"model": "smollm2", "nodes": ["node1", "node2"]})
    assert [share["node"] for share in offer["plan"]["shares"]] == ["node1", "node2"]


def test_plan_of_a_model_that_cannot_fit_is_refused_with_a_way_out(stack: RouterStack) -> None:
    status, answer = stack.admin("plan", {"model": "smollm2", "context": 10_000_000})
    assert status == 507
    assert "a context of" in answer["error"]["message"]


def test_speeds_of_a_stranger_are_refused(stack: RouterStack) -> None:
    body = {"nodes": [{"node": "z", "bytes_per_s": 1, "build": 1, "model": "m", "measured_ns": 1}]}
    status, answer = stack.admin("calibration", body)
    assert (status, answer["error"]["class"]) == (400, "unknown_node")
