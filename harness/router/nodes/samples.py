"""The newest sample of each node's monitor, from Redis; none where there is no Redis."""

import asyncio
import logging
import time
from collections.abc import Sequence

from harness.errors import HarnessError
from harness.monitor.backend_state import BackendState, State, backend_state
from harness.monitor.common import MonitorError
from harness.monitor.redis import RedisSettings
from harness.monitor.redis.reader import LatestReader
from harness.monitor.sample import Sample
from harness.router.json_log import log

_FRESH_S = 1.0
"""Monitors publish once a second: reading more often brings nothing new."""


class NodeSamples:
    """The newest sample of each node, read at most once a second.

    Raises:
        HarnessError: Redis's password cannot be read.
    """

    def __init__(self, settings: RedisSettings | None) -> None:
        try:
            self._reader = LatestReader(settings) if settings else None
        except MonitorError as error:
            raise HarnessError(str(error)) from None
        self._nodes: set[str] = set()
        self._samples: dict[str, Sample] = {}
        self._redis_ns = 0
        """Redis's clock at the last read."""
        self._read_at_s = -_FRESH_S
        self._reading = asyncio.Lock()
        self._available = True

    async def refresh(self, nodes: Sequence[str], *, now: bool = False) -> None:
        """Read Redis, unless it was read just now; who comes during a read waits for its result.

        Without Redis no sample is known, and the log says so once.

        Args:
            nodes: those whose samples are needed.
            now: read in any case.
        """
        if self._reader is None or (not self._available and self._reading.locked()):
            return  # while Redis is away one reader at a time waits for its timeout
        async with self._reading:
            new = set(nodes) - self._nodes
            if not new and not now and time.monotonic() - self._read_at_s < _FRESH_S:
                return
            self._nodes |= new
            try:
                read = await self._reader.read(sorted(self._nodes))
            except MonitorError as error:
                self._samples = {}
                if self._available:
                    log("node_samples_unavailable", level=logging.WARNING, error=str(error))
                self._available = False
            else:
                self._available = True
                self._redis_ns = read.time_ns
                self._samples = {node: sample for node, sample in read.latest.items() if sample}
            self._read_at_s = time.monotonic()

    async def latest(self, nodes: Sequence[str], *, now: bool = False) -> dict[str, Sample]:
        """The samples of the last seconds of those nodes that have one; see ``refresh``."""
        await self.refresh(nodes, now=now)
        return {node: sample for node, sample in self._samples.items() if node in nodes}

    def available_bytes(self, node: str) -> int | None:
        """Memory that a load may still take on ``node``; None where it is not known."""
        sample = self._samples.get(node)
        return sample.memory.available_bytes if sample else None

    def states(self, nodes: Sequence[str]) -> dict[str, BackendState]:
        """State of the backend of each node; empty where there is no Redis."""
        listed_nodes = nodes if self._reader else ()
        return {node: backend_state(self._samples.get(node), self._redis_ns) for node in listed_nodes}

    def in_use(self, node: str) -> str | None:
        """Why the backend of ``node`` must not be connected to; None where its monitor shows no reason."""
        sample = self._samples.get(node)
        state = backend_state(sample, self._redis_ns) if sample else None
        return f"its monitor: {state.reason}" if state and state.state is State.BUSY else None

    async def close(self) -> None:
        if self._reader:
            await self._reader.close()
