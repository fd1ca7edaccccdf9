"""Background tasks: a failure is logged and counted, and one that must go on is run again."""

import asyncio
import logging

import pytest
from harness.router.http.metrics import Metrics
from harness.router.json_log import request_id
from harness.router.supervisor import TaskSupervisor


async def fail() -> None:
    raise ValueError("unforeseen")


async def test_failure_is_logged_with_its_traceback_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    supervisor = TaskSupervisor(metrics.background_task_failed)
    task = supervisor.start("probe", fail())
    await supervisor.finished()
    [record] = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "background_task_failed")
    assert record.__dict__["fields"] == {"task": "probe"}
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)
    assert metrics.registry.get_sample_value("llama_router_background_failures_total") == 1
    with pytest.raises(ValueError, match="unforeseen"):
        await task


async def test_counter_is_there_before_the_first_failure() -> None:
    assert Metrics().registry.get_sample_value("llama_router_background_failures_total") == 0


async def test_end_and_cancellation_are_no_failures(caplog: pytest.LogCaptureFixture) -> None:
    supervisor = TaskSupervisor()
    supervisor.start("short", asyncio.sleep(0))
    endless = supervisor.start("endless", asyncio.sleep(60))
    await asyncio.sleep(0)
    not_begun = supervisor.start("not_begun", fail())
    await supervisor.close()
    assert endless.cancelled()
    assert not_begun.cancelled()
    assert not caplog.records


async def test_task_that_must_go_on_is_restarted_until_it_returns() -> None:
    failures: list[str] = []
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise RecursionError

    supervisor = TaskSupervisor(lambda: failures.append("failed"))
    await supervisor.keep_running("pool_probe", work, restart_s=0.001)
    assert (runs, len(failures)) == (3, 2)


async def test_finished_waits_for_tasks_that_a_task_starts() -> None:
    supervisor, ended = TaskSupervisor(), asyncio.Event()

    async def inner() -> None:
        await asyncio.sleep(0.001)
        ended.set()

    async def outer() -> None:
        supervisor.start("inner", inner())

    supervisor.start("outer", outer())
    await supervisor.finished()
    assert ended.is_set()


async def test_task_does_not_log_with_the_id_of_the_request_that_started_it() -> None:
    ids: list[str | None] = []

    async def work() -> None:
        ids.append(request_id.get())

    request_id.set("r1")
    await TaskSupervisor().start("work", work())
    assert ids == [None]
