"""What backends can give, and the split that is kept while it still fits."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from harness.contracts.plan import Plan
from harness.monitor.sample import Gpu, Memory, Process, Sample, Source
from harness.planner.calibration import Calibration, NodeSpeed
from harness.planner.device_capacity import BackendMemory, Speed
from harness.planner.placement import head_share, make_plan
from harness.router.config import Backend
from harness.router.models.device_capacity import backend_devices
from harness.router.models.plan_store import Knowledge, plan_key
from tests.unit.model_headers import GIB, backends, model


def backend(**given: Any) -> Backend:
    return Backend.model_validate(
        {"node": "a", "endpoint": "10.0.0.1:50052", "memory_bytes": 8 * GIB} | given
    )


def sample(available: int, *, rss: int = 0, gpus: list[Gpu] | None = None) -> Sample:
    memory = Memory(
        source=Source.PROC,
        total_bytes=8 * GIB,
        available_bytes=available,
        used_bytes=0,
        cache_bytes=0,
        swap_total_bytes=0,
        swap_used_bytes=0,
        major_faults=0,
    )
    process = Process(pid=7, name="rpc-server", rss_bytes=rss, swap_bytes=0, cpu_s=0)
    return Sample(time_ns=1, node="a", memory=memory, cpu_s=0, processes=[process], gpus=gpus or [])


def available(given: Backend, seen: Sample | None) -> list[int]:
    samples = {"a": seen} if seen else {}
    return [d.available_bytes for d in backend_devices([given], samples, {}, "10.0.0.9", model())]


def test_node_gives_what_is_available_now_and_what_its_backend_gives_back() -> None:
    assert available(backend(), sample(3 * GIB)) == [3 * GIB]
    assert available(backend(), sample(3 * GIB, rss=2 * GIB)) == [5 * GIB]


def test_node_without_a_sample_gives_what_the_inventory_says() -> None:
    assert available(backend(), None) == [8 * GIB]


def test_inventory_caps_what_a_monitor_sees() -> None:
    assert available(backend(memory_bytes=GIB), sample(3 * GIB)) == [GIB]


def test_gpu_host_gives_the_memory_of_each_of_its_gpus_and_not_its_own() -> None:
    gpus = [
        Gpu(index=i, name="g", uuid=f"u{i}", driver="1", source="nvml", memory_total_bytes=size * GIB)
        for i, size in enumerate((16, 24))
    ]
    assert available(backend(accelerator="cuda"), sample(3 * GIB, gpus=gpus)) == [16 * GIB, 24 * GIB]


def test_head_node_keeps_room_for_the_coordinator() -> None:
    (own,) = backend_devices([backend()], {}, {"a": Speed(1e9)}, "10.0.0.1", model("70b", "TQ1_0"))
    assert own.reserve_bytes == head_share(model("70b", "TQ1_0"))
    assert own.speed == Speed(1e9)
    (given,) = backend_devices([backend(reserve_bytes=5 * GIB)], {}, {}, "10.0.0.1", model())
    assert given.reserve_bytes == 5 * GIB


def plan(*gib: float) -> Plan:
    return make_plan(model("13b", "Q4_0"), backends(*gib))


def test_split_of_the_last_load_is_kept_while_it_fits(tmp_path: Path) -> None:
    Knowledge(tmp_path).remember("key", plan(4, 4, 4), {})
    known = Knowledge(tmp_path)
    fresh = plan(4.6, 4, 4)
    kept = known.settled("key", fresh, backends(4.6, 4, 4))
    assert [s.layers for s in kept.shares] == [s.layers for s in plan(4, 4, 4).shares]
    assert [s.layers for s in kept.shares] != [s.layers for s in fresh.shares]
    assert kept.shares[0].available_bytes == int(4.6 * GIB)
    assert known.settled("other", fresh, backends(4.6, 4, 4)) == fresh


def test_split_that_no_longer_fits_is_made_anew() -> None:
    known = Knowledge(None)
    known.remember("key", plan(4, 4, 4), {})
    fresh = plan(2, 5, 5)
    assert known.settled("key", fresh, backends(2, 5, 5)) == fresh
    assert known.settled("key", fresh, backends(4, 4)) == fresh


def test_clearly_faster_split_replaces_the_kept_one() -> None:
    known = Knowledge(None)
    known.remember("key", plan(4, 4, 4, 4), {})
    devices = [
        BackendMemory(b.node, b.endpoint, b.available_bytes, speed=Speed(rate))
        for b, rate in zip(backends(4, 4, 4, 4), (1e10, 1e10, 1e10, 1e9), strict=True)
    ]
    fresh = make_plan(model("13b", "Q4_0"), devices)
    assert known.settled("key", fresh, devices) == fresh


def test_damaged_file_begins_anew_and_full_disk_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "planning.json").write_text('{"plans": 3')
    known = Knowledge(tmp_path)
    assert known.learned == {}
    gone = Knowledge(tmp_path / "not there")
    gone.calibrate(Calibration(nodes=[NodeSpeed(node="a", bytes_per_s=1, build=1, model="m", measured_ns=1)]))
    assert gone.calibration.nodes[0].node == "a"


@pytest.mark.parametrize("other", [{"path": "/models/x.gguf"}, {"file_bytes": 7}])
def test_key_of_a_split_names_the_file_the_backends_and_what_was_asked(other: dict[str, Any]) -> None:

    facts = model()
    changed = {name: Path(value) if name == "path" else value for name, value in other.items()}
    key = plan_key(facts, ["e1"], 2048, 1)
    assert key == plan_key(facts, ["e1"], 2048, 1)
    assert key not in {
        plan_key(dataclasses.replace(facts, **changed), ["e1"], 2048, 1),
        plan_key(facts, ["e1", "e2"], 2048, 1),
        plan_key(facts, ["e1"], 4096, 1),
    }
