"""Work that belongs to no request."""

import asyncio
from collections.abc import Coroutine
from contextvars import Context


class Background:
    """Starts such work, and waits for it in the end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Begin it; no line of its log carries the id of the request that happened to begin it."""
        task = asyncio.create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finished(self) -> None:
        """Return when all of it has ended."""
        await asyncio.gather(*self._tasks)
