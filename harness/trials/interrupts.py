"""Ctrl-C and SIGTERM as the end of what is being waited for."""

import asyncio
import contextlib
import signal
from collections.abc import Coroutine, Iterator
from typing import NoReturn, TypeVar

ResultT = TypeVar("ResultT")


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came."""


class Stopper:
    """Turns SIGINT and SIGTERM into the end of what is being waited for, once per signal."""

    def __init__(self) -> None:
        self._current: asyncio.Task[object] | None = None
        self._asked = False

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
        if self._asked:
            work.close()
            self._answer()
        task = self._current = asyncio.create_task(work)
        try:
            return await task
        except asyncio.CancelledError:
            if not self._asked:
                raise
            self._answer()
        finally:
            self._current = None

    def _answer(self) -> NoReturn:
        self._asked = False
        raise Interrupted

    def _stop(self) -> None:
        self._asked = True
        if self._current:
            self._current.cancel()
