"""The log of a load, read while it is written."""

from pathlib import Path
from typing import cast

from harness.router.coordinator.engine import CoordinatorProcess
from harness.router.coordinator.instance import CoordinatorInstance
from harness.router.coordinator.readiness import LoadLog, LogTail
from tests.unit.router.coordinator.fakes import LOADED, bench


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
