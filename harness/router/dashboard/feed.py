"""One snapshot a second for everybody who looks; none while nobody does."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import Context

from harness.router.logs import log

PERIOD_S = 1.0


class Feed:
    """Takes snapshots while there are viewers, and hands each of them the newest.

    A viewer that reads slowly misses snapshots; it never gets an old one.

    Args:
        take: gives one snapshot, in one line.
        period_s: pause between two snapshots, seconds.
    """

    def __init__(self, take: Callable[[], Awaitable[str]], period_s: float = PERIOD_S) -> None:
        self._take = take
        self._period_s = period_s
        self._event = b""
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.viewers = 0

    @property
    def running(self) -> bool:
        """Whether snapshots are being taken."""
        return self._task is not None and not self._task.done()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events for one viewer, until it leaves or the router stops."""
        self.viewers += 1
        try:
            if self._task is None or self._task.done():
                self._changed = asyncio.Event()
                # Work for everybody: its log lines carry no viewer's request id.
                self._task = asyncio.create_task(self._run(), context=Context())
                self._task.add_done_callback(self._ended)
            elif self._event:
                yield self._event
            while not self._closing:
                await self._changed.wait()
                if self._closing or not self.running:
                    return
                yield self._event
        finally:
            self.viewers -= 1
            if not self.viewers and self._task:
                self._task.cancel()
                self._task, self._event, self._changed = None, b"", asyncio.Event()

    def close(self) -> None:
        """The router stops: let everybody go."""
        self._closing = True
        self._changed.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task is not self._task:
            return  # nobody looked any more
        if not task.cancelled() and (error := task.exception()):
            log("no snapshot for the dashboard", level=logging.ERROR, error=repr(error))
        self._changed.set()

    async def _run(self) -> None:
        while True:
            self._event = b"data: " + (await self._take()).encode() + b"\n\n"
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
            await asyncio.sleep(self._period_s)
