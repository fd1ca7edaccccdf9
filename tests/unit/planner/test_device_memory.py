"""What the devices of a GPU host can give, from what its rpc-server offers and its monitor shows."""

from typing import Any

import pytest
from harness.monitor.sample import Gpu, GpuSource, Memory, RpcSocket, Sample, Source
from harness.planner.device_memory import (
    OfferedDevice,
    available_bytes,
    devices_of_sample,
    disagreement,
    name_devices,
)

GIB = 1 << 30
NODE = 30 * GIB


def gpu(index: int = 0, source: GpuSource = GpuSource.NVML, **given: Any) -> Gpu:
    return Gpu(index=index, name="board", source=source, **given)


def sample(*gpus: Gpu, busy: bool = False, total: int = 32 * GIB) -> Sample:
    memory = Memory(
        source=Source.PROC,
        total_bytes=total,
        available_bytes=20 * GIB,
        used_bytes=0,
        cache_bytes=0,
        swap_total_bytes=0,
        swap_used_bytes=0,
        major_faults=0,
    )
    rpc = RpcSocket(listening=True, backlog=0, peer="10.0.0.9:1234" if busy else None)
    return Sample(time_ns=1, node="a", memory=memory, cpu_s=0, gpus=list(gpus), rpc=rpc)


def offered(name: str = "CUDA0", total: int = 24 * GIB, free: int = 23 * GIB) -> OfferedDevice:
    return OfferedDevice(name, total, free)


BOARD = 24 * GIB + (GIB >> 1)


@pytest.mark.parametrize(
    ("figures", "busy", "given"),
    [
        ({"memory_used_bytes": 4 * GIB, "memory_own_bytes": 0}, False, 20),
        ({"memory_used_bytes": 22 * GIB, "memory_own_bytes": 20 * GIB}, True, 22),
        ({"memory_used_bytes": 4 * GIB}, False, 20),
        ({"memory_used_bytes": 20 * GIB}, True, 24),
        ({"memory_used_bytes": 1 * GIB, "memory_own_bytes": 2 * GIB}, True, 24),
        ({}, False, 24),
    ],
    ids=[
        "others hold 4",
        "ours and 2 of others",
        "idle: all of it",
        "busy, not told",
        "more than used",
        "none",
    ],
)
def test_card_gives_its_total_less_what_other_programs_hold(
    figures: dict[str, Any], busy: bool, given: int
) -> None:
    newest = sample(gpu(memory_total_bytes=BOARD, **figures), busy=busy)
    assert available_bytes(offered(), newest, NODE) == given * GIB


def test_card_without_figures_gives_what_was_free() -> None:
    assert available_bytes(offered(), None, None) == 23 * GIB
    assert available_bytes(offered(), sample(), NODE) == 23 * GIB
    lost = gpu(problem="GPU is lost", memory_total_bytes=BOARD)
    assert available_bytes(offered(), sample(lost), NODE) == 23 * GIB


def test_figures_of_a_card_of_another_size_are_not_those_of_the_device() -> None:
    # CUDA_VISIBLE_DEVICES gives the second card the first number.
    other = gpu(memory_total_bytes=16 * GIB, memory_used_bytes=15 * GIB, memory_own_bytes=0)
    assert available_bytes(offered(), sample(other), NODE) == 23 * GIB


def test_memory_of_the_host_is_what_the_node_has_available() -> None:
    assert available_bytes(offered("CPU", 32 * GIB), sample(), NODE) == NODE
    assert available_bytes(offered("CPU", 16 * GIB), sample(), NODE) == 16 * GIB


@pytest.mark.parametrize("name", ["CUDA0", "ROCm0"])
def test_gpu_in_the_nodes_memory_gives_no_more_than_the_node_has(name: str) -> None:
    source = GpuSource.NVML if name == "CUDA0" else GpuSource.AMDGPU
    board = gpu(source=source, unified=True, memory_own_bytes=10 * GIB)
    assert available_bytes(offered(name, 120 * GIB), sample(board), 90 * GIB) == 100 * GIB
    assert available_bytes(offered(name, 62 * GIB), sample(board), 90 * GIB) == 62 * GIB


def test_devices_have_the_names_of_the_inventory_or_those_of_their_kind() -> None:
    assert name_devices("cuda", ["CUDA0", "CPU"], 2) == ["CUDA0", "CPU"]
    assert name_devices("rocm", [], 2) == ["ROCm0", "ROCm1"]


def test_monitor_of_a_busy_host_shows_its_devices_without_the_display() -> None:
    display = gpu(0, GpuSource.AMDGPU, memory_total_bytes=GIB)
    newest = sample(gpu(0, memory_total_bytes=16 * GIB), gpu(1, memory_total_bytes=24 * GIB), display)
    assert [d.total_bytes // GIB for d in devices_of_sample("cuda", [], newest)] == [16, 24]
    assert [d.total_bytes // GIB for d in devices_of_sample("cuda", ["CUDA1", "CPU"], newest)] == [24, 32]
    assert devices_of_sample("cuda", [], sample(gpu(problem="gone"))) == []
    assert [d.total_bytes // GIB for d in devices_of_sample("cuda", [], sample(gpu(unified=True)))] == [32]


@pytest.mark.parametrize(
    ("devices", "given", "newest", "problem"),
    [
        ([offered()], [], sample(gpu(memory_total_bytes=BOARD)), None),
        ([offered()], ["CUDA0", "CUDA1"], None, "it offers 1 devices and the inventory says CUDA0, CUDA1"),
        ([offered(total=32 * GIB)], [], sample(gpu(memory_total_bytes=BOARD)), "instead of CUDA0"),
        ([offered(total=32 * GIB)], [], sample(gpu(unified=True)), None),
        (
            [offered(), offered("CPU", 32 * GIB)],
            ["CUDA0", "CPU"],
            sample(gpu(memory_total_bytes=BOARD)),
            None,
        ),
        ([offered(total=32 * GIB)], [], sample(gpu(memory_total_bytes=32 * GIB)), None),
        ([offered(total=32 * GIB)], [], None, None),
    ],
    ids=["agrees", "one is missing", "the CPU", "unified", "card and memory", "equal sizes", "nothing known"],
)
def test_fallback_and_missing_devices_are_seen(
    devices: list[OfferedDevice], given: list[str], newest: Sample | None, problem: str | None
) -> None:
    found = disagreement(devices, given, newest)
    assert found == problem if problem is None else found and found.startswith(problem)
