"""The plan store: a split is used again while it fits, and a bad file is replaced."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from harness.contracts.plan import Plan
from harness.planner.device_capacity import Calibration, DeviceCapacity, NodeSpeed
from harness.planner.placement import make_plan
from harness.router.models.plan_store import PlanStore, plan_key
from tests.unit.model_headers import GIB, backends, model


def plan(*gib: float) -> Plan:
    return make_plan(model("13b", "Q4_0"), backends(*gib))


def test_split_of_the_last_load_is_kept_while_it_fits(tmp_path: Path) -> None:
    PlanStore(tmp_path).remember("key", plan(4, 4, 4), {})
    store = PlanStore(tmp_path)
    fresh = plan(4.6, 4, 4)
    kept = store.sticky_plan("key", fresh, backends(4.6, 4, 4))
    assert [s.layers for s in kept.shares] == [s.layers for s in plan(4, 4, 4).shares]
    assert [s.layers for s in kept.shares] != [s.layers for s in fresh.shares]
    assert kept.shares[0].available_bytes == int(4.6 * GIB)
    assert store.sticky_plan("other", fresh, backends(4.6, 4, 4)) == fresh


def test_split_that_no_longer_fits_is_made_anew() -> None:
    store = PlanStore(None)
    store.remember("key", plan(4, 4, 4), {})
    fresh = plan(2, 5, 5)
    assert store.sticky_plan("key", fresh, backends(2, 5, 5)) == fresh
    assert store.sticky_plan("key", fresh, backends(4, 4)) == fresh


def test_clearly_faster_split_replaces_the_kept_one() -> None:
    store = PlanStore(None)
    store.remember("key", plan(4, 4, 4, 4), {})
    devices = [
        DeviceCapacity(b.node, b.endpoint, b.available_bytes, bytes_per_s=rate)
        for b, rate in zip(backends(4, 4, 4, 4), (1e10, 1e10, 1e10, 1e9), strict=True)
    ]
    fresh = make_plan(model("13b", "Q4_0"), devices)
    assert store.sticky_plan("key", fresh, devices) == fresh


def test_damaged_file_begins_anew_and_full_disk_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "planning.json").write_text('{"plans": 3')
    store = PlanStore(tmp_path)
    assert store.learned == {}
    store = PlanStore(tmp_path / "not there")
    store.calibrate(
        Calibration(nodes=[NodeSpeed(node="a", bytes_per_s=1, build=1, model="m", measured_ns=1)])
    )
    assert store.calibration.nodes[0].node == "a"


@pytest.mark.parametrize("other", [{"path": "/models/x.gguf"}, {"file_bytes": 7}])
def test_key_of_a_split_names_the_file_the_backends_and_the_settings(other: dict[str, Any]) -> None:
    facts = model()
    changed = {name: Path(value) if name == "path" else value for name, value in other.items()}
    key = plan_key(facts, ["e1"], 2048, 1)
    assert key == plan_key(facts, ["e1"], 2048, 1)
    assert key not in {
        plan_key(dataclasses.replace(facts, **changed), ["e1"], 2048, 1),
        plan_key(facts, ["e1", "e2"], 2048, 1),
        plan_key(facts, ["e1"], 4096, 1),
    }


def test_stored_plan_that_is_not_valid_any_more_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = PlanStore(tmp_path)
    for key in ("good", "negative", "unsummed"):
        store.remember(key, plan(4, 4, 4), {})
    path = tmp_path / "planning.json"
    content = json.loads(path.read_text())
    content["plans"]["negative"]["shares"][0]["weight"] = -1
    content["plans"]["unsummed"]["shares"][0]["layers"] += 1
    path.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        kept = PlanStore(tmp_path)
    fresh = plan(4.6, 4, 4)
    used = {key: kept.sticky_plan(key, fresh, backends(4.6, 4, 4)) != fresh for key in content["plans"]}
    assert used == {"good": True, "negative": False, "unsummed": False}
    assert [record.getMessage() for record in caplog.records] == ["stored_plan_left_out"] * 2
