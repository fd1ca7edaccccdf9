"""Ctrl-C and SIGTERM cancel what a run awaits."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator
from typing import TypeVar

ResultT = TypeVar("ResultT")


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came."""


class InterruptHandler:
    """Cancels the awaited work at SIGINT and SIGTERM, once per signal."""

    def __init__(self) -> None:
        self._current: asyncio.Task[object] | None = None
        self._requested = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals for as long as the block runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def run(self, work: Coroutine[object, object, ResultT]) -> ResultT:
        """Await ``work``.

        Raises:
            Interrupted: a signal came while it ran, or since the last call.
        """
        task = self._current = asyncio.create_task(work)
        if self._requested:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            if not self._requested:
                raise
            self._requested = False
            raise Interrupted from None
        finally:
            self._current = None

    def _stop(self) -> None:
        self._requested = True
        if self._current:
            self._current.cancel()
