"""The newest sample of each node's monitor, from Redis; none where there is no Redis.

A background task reads Redis once a second. Requests use what it read last, so a Redis that hangs costs them
nothing.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from harness.errors import HarnessError
from harness.monitor.backend_state import (
    SILENT_AFTER_S,
    BackendState,
    State,
    backend_state,
    state_of_refused,
)
from harness.monitor.common import MonitorError
from harness.monitor.redis import RedisSettings
from harness.monitor.redis.reader import LatestReader, LatestSamples
from harness.monitor.sample import Sample
from harness.router.http.metrics import Metrics
from harness.router.json_log import log
from harness.router.supervisor import TaskSupervisor

READ_EVERY_S = 1.0
"""Monitors publish once a second: reading more often brings nothing new."""
READ_WITHIN_S = 3.0
"""How long a caller that wants a new read waits for it."""
LOG_REFUSED_EVERY_S = 60.0


class NodeSamples:
    """The newest sample of each node, read in the background once started.

    Args:
        nodes: those whose samples are read.

    Raises:
        HarnessError: Redis's password cannot be read.
    """

    def __init__(
        self, settings: RedisSettings | None, nodes: Iterable[str] = (), metrics: Metrics | None = None
    ) -> None:
        try:
            self._reader = LatestReader(settings) if settings else None
        except MonitorError as error:
            raise HarnessError(str(error)) from None
        self._nodes = sorted(set(nodes))
        self._metrics = metrics or Metrics()
        self._tasks = TaskSupervisor(self._metrics.background_task_failed)
        self._read = LatestSamples(time_ns=0, latest={})
        self._read_at_s = -SILENT_AFTER_S
        self._wanted = asyncio.Event()
        self._ended = asyncio.Condition()
        """Notified at the end of each read."""
        self._available = True
        self._logged_s: dict[str, float] = {}
        if self._reader:
            self._metrics.show_samples(self._nodes, lambda: self._age_s)

    async def start(self) -> None:
        """Begin to read; returns after the first read, also if that failed."""
        if self._reader:
            self._tasks.keep_running("node_samples", self._keep_reading)
            await self._next_read()

    async def latest(self, nodes: Sequence[str], *, now: bool = False) -> dict[str, Sample]:
        """The samples of the last seconds of those nodes that have one.

        Args:
            now: wait for the end of a read, for a few seconds at most.
        """
        if now and self._reader:
            await self._next_read()
        return {node: sample for node in nodes if (sample := self._sample(node))}

    def available_bytes(self, node: str) -> int | None:
        """Memory that a load may still take on ``node``; None where it is not known."""
        sample = self._sample(node)
        return sample.memory.available_bytes if sample else None

    def states(self, nodes: Sequence[str]) -> dict[str, BackendState]:
        """State of the backend of each node; empty where there is no Redis."""
        return {node: self._state(node) for node in nodes} if self._reader else {}

    def in_use(self, node: str) -> str | None:
        """Why the backend of ``node`` must not be connected to; None where its monitor shows no reason."""
        state = self._state(node)
        return f"its monitor: {state.reason}" if state.state is State.BUSY else None

    async def close(self) -> None:
        await self._tasks.close()
        if self._reader:
            await self._reader.close()

    @property
    def _age_s(self) -> float:
        return time.monotonic() - self._read_at_s

    def _sample(self, node: str) -> Sample | None:
        return self._read.latest.get(node) if self._age_s <= SILENT_AFTER_S else None

    def _state(self, node: str) -> BackendState:
        reason = self._read.refused.get(node)
        if reason and self._age_s <= SILENT_AFTER_S:
            return state_of_refused(reason)
        return backend_state(self._sample(node), self._read.time_ns + int(self._age_s * 1e9))

    async def _next_read(self) -> None:
        self._wanted.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(READ_WITHIN_S), self._ended:
                await self._ended.wait()

    async def _keep_reading(self) -> None:
        while True:
            self._wanted.clear()
            await self._read_once()
            async with self._ended:
                self._ended.notify_all()
            with suppress(TimeoutError):
                async with asyncio.timeout(READ_EVERY_S):
                    await self._wanted.wait()

    async def _read_once(self) -> None:
        assert self._reader is not None  # noqa: S101 - see start
        try:
            self._read = await self._reader.read(self._nodes, last=False)
        except MonitorError as error:
            if self._available:
                log("node_samples_unavailable", level=logging.WARNING, error=str(error))
            self._available = False
            return
        self._available = True
        self._read_at_s = time.monotonic()
        for node, reason in self._read.refused.items():
            self._refused(node, reason)

    def _refused(self, node: str, reason: str) -> None:
        self._metrics.sample_refused(node)
        now = time.monotonic()
        if now - self._logged_s.get(node, -LOG_REFUSED_EVERY_S) >= LOG_REFUSED_EVERY_S:
            self._logged_s[node] = now
            log("node_sample_refused", level=logging.WARNING, node=node, reason=reason)
