"""The log of a load, read while it is written."""

import asyncio
import shutil
from pathlib import Path
from typing import cast

import pytest
from harness.contracts.coordinator_state import CoordinatorPhase
from harness.contracts.diagnosis import FailureClass
from harness.contracts.plan import LoadRequest
from harness.router.coordinator.engine import CoordinatorProcess, LoadError
from harness.router.coordinator.instance import CoordinatorInstance
from harness.router.coordinator.readiness import LoadLog, LogTail
from harness.router.errors import RouterError
from tests.unit.router.coordinator.fakes import LOADED, bench, until


def test_line_that_is_still_being_written_is_not_read(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(b"one\ntw")
    tail = LogTail(log)
    assert tail.new_lines() == [b"one"]
    assert tail.new_lines() == []
    with log.open("ab") as more:
        more.write(b"o\n\xff\n")
    assert tail.new_lines() == [b"two", b"\xff"]


async def loaded(folder: Path) -> tuple[CoordinatorInstance, CoordinatorProcess]:
    at = bench(folder)
    instance = await at.loaded()
    await at.manager.close()
    assert instance.process is not None
    return instance, instance.process


async def test_report_and_phases_grow_with_the_log(tmp_path: Path) -> None:
    instance, process = await loaded(tmp_path)
    process.log_path.write_text("build: 6751\n")
    load_log = LoadLog(instance, process)
    assert load_log.update().offloaded is None
    with process.log_path.open("a") as log:
        log.write("llama_model_loader: loaded meta data\nloading model tensors\n" + LOADED)
    report = load_log.update()
    assert (report.build, report.offloaded, report.layers_total) == (6751, 2, 2)
    assert [(buffer.node, buffer.model_bytes) for buffer in report.buffers] == [("node1", 10 << 20)]
    assert set(instance.timings.phases) == {"connect", "open"}


async def test_verbose_log_is_parsed_once(tmp_path: Path) -> None:
    """Lines that say nothing of the load are not kept: the work is linear in the log, also with ``-v``."""
    instance, process = await loaded(tmp_path)
    process.log_path.write_text("")
    load_log = LoadLog(instance, process)
    for _ in range(50):
        with process.log_path.open("a") as log:
            log.write("srv  update_slots: run slots completed\n" * 100 + LOADED)
        load_log.update()
    assert len(load_log._reported) == 50 * LOADED.count("\n")
    assert cast(int, load_log.update().offloaded) == 2


def test_log_that_was_rotated_is_read_from_its_beginning(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(b"head\n" + b"middle\n" * 100)
    tail = LogTail(log)
    assert len(tail.new_lines()) == 101
    log.write_bytes(b"head\nnewest\n")
    assert tail.new_lines() == [b"head", b"newest"]


async def test_load_waits_for_the_lines_that_are_still_in_the_pipe(tmp_path: Path) -> None:
    at = bench(tmp_path)
    at.engine.log = ""
    asking = asyncio.create_task(at.ask())
    await until(lambda: bool(at.engine.processes))
    await asyncio.sleep(0.05)  # it is healthy meanwhile
    at.engine.process.log_path.write_text(LOADED)
    await asking
    assert at.manager.state.report
    await at.manager.close()


async def test_full_disk_in_a_load_has_its_name(tmp_path: Path) -> None:
    """Without its lines a load cannot be checked: not the distribution is wrong, the disk is full."""
    at = bench(tmp_path)
    at.engine.log = ""
    asking = asyncio.create_task(at.ask())
    await until(lambda: bool(at.engine.processes))
    at.engine.process.log_problem = LoadError(FailureClass.DISK_FULL, "server.log cannot be written: full")
    with pytest.raises(RouterError) as refused:
        await asking
    assert (refused.value.status, refused.value.error_class) == (507, "disk_full")
    assert refused.value.diagnosis
    assert refused.value.diagnosis.failure_class is FailureClass.DISK_FULL
    await at.manager.close()


async def test_load_without_room_for_its_log_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = bench(tmp_path)
    loaded = await at.loaded("a")
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(RouterError) as refused:
        await at.manager.load(LoadRequest(model="b"))
    assert (refused.value.status, refused.value.error_class) == (507, "disk_full")
    with pytest.raises(RouterError, match="the head node's disk is full"):
        await at.ask("b")
    assert loaded.phase is CoordinatorPhase.READY
    monkeypatch.undo()
    await at.ask("b")
    await at.manager.close()
