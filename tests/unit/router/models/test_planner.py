"""What each backend can give to a plan, from samples, the inventory and idle rpc-servers."""

import asyncio
import os
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness.contracts.plan import LoadRequest
from harness.llama.synthetic.writer import synthesise
from harness.monitor.sample import Gpu, GpuSource, Memory, Process, Sample, Source
from harness.planner.device_capacity import Calibration, DeviceCapacity, NodeSpeed
from harness.planner.placement import head_share
from harness.router.config import Backend, RouterConfig
from harness.router.errors import RouterError
from harness.router.models.catalogue import Catalogue
from harness.router.models.planner import Planner, ReplacedProcess
from tests.unit.model_headers import GIB, model


def backend(**given: Any) -> Backend:
    return Backend.model_validate(
        {"node": "a", "endpoint": "10.0.0.1:50052", "memory_bytes": 8 * GIB} | given
    )


def process(pid: int, name: str, rss: int) -> Process:
    return Process(pid=pid, name=name, rss_bytes=rss, swap_bytes=0, cpu_s=0)


def sample(available: int, *processes: Process, gpus: Sequence[int] = ()) -> Sample:
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
    shown = [
        Gpu(index=i, name="g", uuid=f"u{i}", driver="1", source="nvml", memory_total_bytes=size)
        for i, size in enumerate(gpus)
    ]
    return Sample(time_ns=1, node="a", memory=memory, cpu_s=0, processes=list(processes), gpus=shown)


def available(given: Backend, newest: Sample | None, **more: Any) -> list[int]:
    samples = {"a": newest} if newest else {}
    return [device.available_bytes for device in devices(given, samples, **more)]


def devices(given: Backend, samples: Mapping[str, Sample], **more: Any) -> list[DeviceCapacity]:
    """What the planner of a router, by default on the backend's node, takes its devices to be."""
    router, header = more.pop("router", "10.0.0.1"), more.pop("header", model())
    config = RouterConfig(address=router, backends=[given])

    async def newest(nodes: Sequence[str]) -> Mapping[str, Sample]:
        return samples

    ours = Planner(config, Catalogue(Path("/nowhere")), newest)
    speed = NodeSpeed(node="a", bytes_per_s=1e9, build=None, model="m", measured_ns=1)
    ours.plan_store.calibrate(Calibration(nodes=[speed]))
    return ours.devices([given], samples, header, **more)


def test_node_gives_what_is_available_now_and_what_its_backend_gives_back() -> None:
    assert available(backend(), sample(3 * GIB)) == [3 * GIB]
    assert available(backend(), sample(3 * GIB, process(7, "rpc-server", 2 * GIB))) == [5 * GIB]


def test_memory_of_the_coordinator_that_is_stopped_first_counts_as_available_on_the_head_node() -> None:
    old = process(41, "llama-server", 6 * GIB)
    replaced = ReplacedProcess(41, 4 * GIB)
    assert available(backend(), sample(GIB, old), replaces=replaced) == [5 * GIB]
    assert available(backend(), sample(5 * GIB), replaces=replaced) == [5 * GIB], "it is gone already"
    other = process(42, "llama-server", 6 * GIB)
    assert available(backend(), sample(GIB, other), replaces=replaced) == [GIB], "a server of the pool"
    away = available(backend(), sample(GIB, old), replaces=replaced, router="10.0.0.9")
    assert away == [GIB], "a process of another node"


def test_memory_of_a_process_is_what_its_end_gives_back() -> None:
    own = ReplacedProcess.read(os.getpid())
    assert own
    assert 1 << 20 < own.memory_bytes < 4 * GIB
    assert ReplacedProcess.read(None) is None
    assert ReplacedProcess.read(1 << 30) is None


def test_node_without_a_sample_gives_what_the_inventory_says() -> None:
    assert available(backend(), None) == [8 * GIB]


def test_inventory_caps_what_a_monitor_reports() -> None:
    assert available(backend(memory_bytes=GIB), sample(3 * GIB)) == [GIB]


def test_head_node_keeps_room_for_the_coordinator() -> None:
    (own,) = devices(backend(), {}, header=model("70b", "TQ1_0"))
    assert own.reserve_bytes == head_share(model("70b", "TQ1_0"))
    assert own.bytes_per_s == 1e9
    (given,) = devices(backend(reserve_bytes=5 * GIB), {})
    assert given.reserve_bytes == 5 * GIB


@pytest.fixture
async def rpc_server() -> AsyncIterator[str]:
    """A double of an idle rpc-server with two devices of 16 and 24 GiB; its endpoint."""

    def reply(payload: bytes) -> bytes:
        return struct.pack("<Q", len(payload)) + payload

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                _, size = struct.unpack("<BQ", await reader.readexactly(9))
                body = await reader.readexactly(size)
                if size == 4:
                    total = (16, 24)[int.from_bytes(body, "little")] * GIB
                    writer.write(reply(struct.pack("<QQ", total, total)))
                else:
                    writer.write(answers.pop(0))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    answers = [reply(bytes((3, 0, 0))), reply(struct.pack("<I", 2))]
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


def planner(
    folder: Path, endpoint: str, samples: Mapping[str, Sample], devices: Sequence[str] = ()
) -> Planner:
    synthesise("tiny", "Q4_0", folder / "m.gguf")
    gpu_host: dict[str, Any] = {"node": "a", "endpoint": endpoint, "memory_bytes": 8 * GIB}
    gpu_host |= {"accelerator": "cuda", "devices": devices}
    config = {"address": "10.0.0.9", "models_dir": folder, "backends": [gpu_host]}

    async def newest(nodes: Sequence[str]) -> Mapping[str, Sample]:
        return samples

    return Planner(RouterConfig.model_validate(config), Catalogue(folder), newest)


async def test_gpu_host_gives_the_memory_of_each_of_its_gpus_and_not_its_own(tmp_path: Path) -> None:
    samples = {"a": sample(3 * GIB, gpus=[16 * GIB, 24 * GIB])}
    ours = planner(tmp_path, "127.0.0.1:9", samples)
    for _ in range(2):
        planned = await ours.prepare(LoadRequest(model="m"))
        assert [share.available_bytes for share in planned.plan.shares] == [16 * GIB, 24 * GIB]
        samples.clear()  # its monitor falls silent: the devices are still known


async def test_devices_of_a_gpu_host_with_a_silent_monitor_are_read_from_its_idle_rpc_server(
    tmp_path: Path, rpc_server: str
) -> None:
    planned = await planner(tmp_path, rpc_server, {}).prepare(LoadRequest(model="m"))
    assert [share.device for share in planned.plan.shares] == [0, 1]
    assert planned.argv[planned.argv.index("--device") + 1] == "RPC0,RPC1"
    assert planned.sampled == frozenset()


async def test_other_devices_than_the_inventorys_are_refused(tmp_path: Path, rpc_server: str) -> None:
    ours = planner(tmp_path, rpc_server, {}, devices=["CUDA0"])
    with pytest.raises(RouterError, match="a: it offers 2 devices and the inventory says CUDA0; see the log"):
        await ours.prepare(LoadRequest(model="m"))


async def test_rpc_server_that_computes_on_the_cpu_of_a_gpu_host_is_refused(
    tmp_path: Path, rpc_server: str
) -> None:
    here = sample(3 * GIB, gpus=[24 * GIB])
    node = here.memory.model_copy(update={"total_bytes": 16 * GIB})
    ours = planner(tmp_path, rpc_server, {"a": here.model_copy(update={"memory": node})})
    with pytest.raises(RouterError, match="instead of CUDA0 it offers the node's memory"):
        await ours.prepare(LoadRequest(model="m"))


async def test_card_and_memory_of_one_host_are_two_devices(tmp_path: Path, rpc_server: str) -> None:
    samples = {"a": sample(7 * GIB, process(5, "rpc-server", GIB), gpus=[16 * GIB])}
    ours = planner(tmp_path, rpc_server, samples, devices=["CUDA0", "CPU"])
    planned = await ours.prepare(LoadRequest(model="m"))
    assert [share.available_bytes for share in planned.plan.shares] == [16 * GIB, 8 * GIB]


async def test_gpu_that_rpc_server_does_not_offer_is_not_planned_for(tmp_path: Path, rpc_server: str) -> None:
    here = sample(3 * GIB, gpus=[16 * GIB, 24 * GIB])
    display = here.gpus[0].model_copy(update={"source": GpuSource.AMDGPU, "memory_total_bytes": GIB // 2})
    samples = {"a": here.model_copy(update={"gpus": [*here.gpus, display]})}
    planned = await planner(tmp_path, rpc_server, samples).prepare(LoadRequest(model="m"))
    assert [share.available_bytes for share in planned.plan.shares] == [16 * GIB, 24 * GIB]


async def test_gpu_host_whose_rpc_server_is_in_use_is_not_connected_to(tmp_path: Path) -> None:
    connections = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1

    server = await asyncio.start_server(count, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    _, client = await asyncio.open_connection(host, port)
    planned = await planner(tmp_path, f"{host}:{port}", {}).prepare(LoadRequest(model="m"))
    assert [share.available_bytes for share in planned.plan.shares] == [8 * GIB]
    await asyncio.sleep(0)
    assert connections == 1
    client.close()
    server.close()
