"""What the coordinator does where no llama-server ever runs: unreadable models, full disks."""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from harness.contracts.coordinator_state import LoadTimings
from harness.contracts.plan import BackendShare, Plan
from harness.router.config import RouterConfig
from harness.router.coordinator.coordinator import Coordinator
from harness.router.coordinator.start import Start
from harness.router.errors import RouterError
from harness.router.http.metrics import Metrics
from harness.router.models.catalogue import Catalogue
from harness.router.nodes.samples import node_samples

CUT = b"GGUF" + struct.pack("<IQQ", 3, 0, 5)
MS = 10**6


def refused(folder: Path, ask: Callable[[Coordinator], Awaitable[object]]) -> RouterError:
    """The error of one question to a coordinator whose models are in ``folder``."""

    async def asked() -> None:
        config = RouterConfig(address="127.0.0.1", models_dir=folder, log_dir=folder / "logs")
        async with aiohttp.ClientSession() as session:
            coordinator = Coordinator(config, Catalogue(folder), session, Metrics(), node_samples(None))
            await asyncio.wait_for(ask(coordinator), 5)

    with pytest.raises(RouterError) as caught:
        asyncio.run(asked())
    return caught.value


async def lend(coordinator: Coordinator) -> None:
    async with coordinator.lend("m"):
        pass


def test_request_for_a_cut_model_is_answered_at_once(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(CUT)
    error = refused(tmp_path, lend)
    assert (error.status, error.error_class) == (422, "model_invalid")
    assert "m.gguf: the file ends inside its header" in error.message


def test_request_does_not_wait_for_ever_whatever_breaks_a_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(catalogue: Catalogue, name: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Catalogue, "find", broken)
    error = refused(tmp_path, lend)
    assert (error.status, error.message) == (500, "m: the load broke off: see the router's journal")


def test_link_to_nothing_and_folder_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "m.gguf").write_bytes(CUT)
    assert [file.name for file in Catalogue(tmp_path).files()] == ["m"]


def test_end_is_known_where_its_record_cannot_be_written(tmp_path: Path) -> None:
    share = BackendShare(
        node="a", endpoint="10.0.0.1:1", available_bytes=1, weight=1, layers=1, model_bytes=1, kv_bytes=0,
        compute_bytes=0,
    )  # fmt: skip
    plan = Plan(model="m", model_path="/m", file_bytes=1, layers_total=1, shares=[share])

    async def end() -> Start:
        start = Start(plan, [], tmp_path, requested_ns=0)
        start.folder.mkdir()
        (start.folder / "start.json").mkdir()  # stands in the way, as a full disk would
        start.finish(None)
        return start

    start = asyncio.run(end())
    assert start.ended.is_set()
    assert [path.name for path in start.folder.iterdir()] == ["start.json"]


def test_overhead_counts_the_whole_of_the_look_that_found_it_ready() -> None:
    seen = LoadTimings(requested_ns=0, exec_ns=10 * MS, healthy_ns=900 * MS, ready_ns=905 * MS)
    assert seen.overhead_s == pytest.approx(0.015)
    seen.loading_ns = 850 * MS
    assert seen.overhead_s == pytest.approx(0.065)
