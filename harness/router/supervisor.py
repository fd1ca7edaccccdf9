"""Background tasks of the router: none of them fails without a log line and a count."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextvars import Context

from harness.router.json_log import log

Work = Coroutine[None, None, None]

FIRST_RESTART_S = 1.0
LONGEST_RESTART_S = 60.0


class TaskSupervisor:
    """Starts background tasks, reports those that fail, and stops them at the end.

    A failure is any exception but a cancellation: nobody awaits the task, so the task itself handles the
    errors that it expects. It is logged as ``background_task_failed`` with its traceback.

    Args:
        on_failure: called after each failure, to count it.
    """

    def __init__(self, on_failure: Callable[[], None] = lambda: None) -> None:
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, name: str, work: Work) -> asyncio.Task[None]:
        """Run a task once.

        Its log lines do not carry the id of the request that happened to start it. An exception is reported,
        and raised where the task is awaited. ``name`` is a snake_case token for the log.
        """
        task = asyncio.create_task(self._reported(name, work), name=name, context=Context())
        self._tasks.add(task)

        def forget(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            work.close()  # a task that is cancelled before its first step leaves it unawaited
            if not task.cancelled():
                task.exception()  # read here, so that asyncio does not report it once more

        task.add_done_callback(forget)
        return task

    def keep_running(
        self, name: str, work: Callable[[], Work], *, restart_s: float = FIRST_RESTART_S
    ) -> asyncio.Task[None]:
        """Run a task, and run it again after each failure until it returns or is cancelled.

        Args:
            work: called for each run.
            restart_s: pause before the first restart; each further pause is twice as long, up to a minute.
        """
        return self.start(name, self._restarted(name, work, restart_s))

    async def finished(self) -> None:
        """Return when all tasks have ended, those included that are started meanwhile."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Cancel all tasks, and return when they have ended."""
        for task in self._tasks:
            task.cancel()
        await self.finished()

    async def _restarted(self, name: str, work: Callable[[], Work], pause_s: float) -> None:
        while True:
            try:
                return await self._reported(name, work())
            except Exception:  # noqa: BLE001 - reported; whatever it was, the task is needed
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_RESTART_S)

    async def _reported(self, name: str, work: Work) -> None:
        try:
            await work
        except Exception as error:
            log("background_task_failed", level=logging.ERROR, traceback_of=error, task=name)
            self._on_failure()
            raise
