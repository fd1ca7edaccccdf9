"""What the coordinator does where no llama-server ever runs: unreadable models, full disks."""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from harness.contracts.coordinator_state import LoadTimings
from harness.router.config import RouterConfig
from harness.router.coordinator.factory import create_manager
from harness.router.coordinator.manager import CoordinatorManager
from harness.router.errors import RouterError
from harness.router.failures import Failures
from harness.router.http.metrics import Metrics
from harness.router.models.catalogue import Catalogue
from harness.router.models.planner import Planner
from harness.router.nodes.backends import BackendWatch
from harness.router.nodes.samples import NodeSamples
from tests.unit.router.coordinator.fakes import bench

CUT = b"GGUF" + struct.pack("<IQQ", 3, 0, 5)
MS = 10**6


def refused(folder: Path, ask: Callable[[CoordinatorManager], Awaitable[object]]) -> RouterError:
    """The error of one question to a coordinator whose models are in ``folder``."""

    async def asked() -> None:
        config = RouterConfig(address="127.0.0.1", models_dir=folder, log_dir=folder / "logs")
        async with aiohttp.ClientSession() as session:
            metrics = Metrics()
            planner = Planner(config, Catalogue(folder), BackendWatch(NodeSamples(None)).samples)
            coordinator = create_manager(
                config, planner, session, metrics, NodeSamples(None), Failures(config, metrics)
            )
            await asyncio.wait_for(ask(coordinator), 5)

    with pytest.raises(RouterError) as caught:
        asyncio.run(asked())
    return caught.value


async def acquire(coordinator: CoordinatorManager) -> None:
    async with coordinator.acquire("m"):
        pass


def test_request_for_a_cut_model_is_answered_at_once(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(CUT)
    error = refused(tmp_path, acquire)
    assert (error.status, error.error_class) == (422, "model_invalid")
    assert "m.gguf: the file ends inside its header" in error.message


def test_link_to_nothing_and_folder_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "m.gguf").write_bytes(CUT)
    assert [file.name for file in Catalogue(tmp_path).files()] == ["m"]


async def test_end_is_known_where_its_record_cannot_be_written(tmp_path: Path) -> None:
    at = bench(tmp_path)
    instance = await at.loaded()
    (instance.folder / "start.json").unlink()
    (instance.folder / "start.json").mkdir()  # in the way, as a full disk would be
    await at.manager.unload(signal="SIGTERM", deadline_s=0)
    assert instance.ended.is_set()
    assert {path.name for path in instance.folder.iterdir()} == {"server.log", "start.json"}
    await at.manager.close()


def test_overhead_counts_the_whole_of_the_look_that_found_it_ready() -> None:
    seen = LoadTimings(requested_ns=0, exec_ns=10 * MS, healthy_ns=900 * MS, ready_ns=905 * MS)
    assert seen.overhead_s == pytest.approx(0.015)
    seen.loading_ns = 850 * MS
    assert seen.overhead_s == pytest.approx(0.065)
