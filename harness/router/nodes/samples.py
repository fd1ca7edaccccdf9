"""What the nodes' monitors last said, from Redis; nothing where there is no Redis."""

import logging
import time

from harness.errors import HarnessError
from harness.monitor.backend_state import BackendState, State, backend_state
from harness.monitor.config_file import MonitorError
from harness.monitor.redis.reader import AsyncLatestReader
from harness.monitor.redis.settings import RedisSettings
from harness.monitor.sample import Sample
from harness.router.logs import log

_FRESH_S = 1.0
"""Monitors publish once a second: asking more often brings nothing new."""


def node_samples(settings: RedisSettings | None) -> "NodeSamples":
    """The samples behind ``settings``; none where there are none.

    Raises:
        HarnessError: Redis's password cannot be read.
    """
    try:
        return NodeSamples(AsyncLatestReader(settings) if settings else None)
    except MonitorError as error:
        raise HarnessError(str(error)) from None


class NodeSamples:
    """The newest sample of each node, asked for at most once a second."""

    def __init__(self, reader: AsyncLatestReader | None) -> None:
        self._reader = reader
        self._nodes: set[str] = set()
        self._samples: dict[str, Sample] = {}
        self._now_ns = 0
        self._asked = -_FRESH_S
        self._away = False

    async def refresh(self, nodes: list[str], *, now: bool = False) -> None:
        """Ask Redis, unless it was asked just now. Redis away: nothing is known, and the log says so once.

        Args:
            nodes: those that somebody wants to know of.
            now: ask all the same: somebody waits for what comes next.
        """
        new = set(nodes) - self._nodes
        if self._reader is None or (not new and not now and time.monotonic() - self._asked < _FRESH_S):
            return
        self._nodes |= new
        self._asked = time.monotonic()
        try:
            heard = await self._reader.read(sorted(self._nodes))
        except MonitorError as error:
            self._samples = {}
            if not self._away:
                log("node samples not available", level=logging.WARNING, error=str(error))
            self._away = True
            return
        self._away = False
        self._now_ns = heard.time_ns
        self._samples = {node: sample for node, sample in heard.latest.items() if sample}

    async def heard(self, nodes: list[str], *, now: bool = False) -> dict[str, Sample]:
        """The samples of the last seconds of those nodes that have one; see ``refresh``."""
        await self.refresh(nodes, now=now)
        return {node: sample for node, sample in self._samples.items() if node in nodes}

    def available_bytes(self, node: str) -> int | None:
        """Memory that a load may still take on ``node``; None where it is not known."""
        sample = self._samples.get(node)
        return sample.memory.available_bytes if sample else None

    def states(self, nodes: list[str]) -> dict[str, BackendState]:
        """State of the backend of each node; nothing where there is no Redis to ask."""
        if self._reader is None:
            return {}
        return {node: backend_state(self._samples.get(node), self._now_ns) for node in nodes}

    def in_use(self, node: str) -> str | None:
        """Why the backend of ``node`` must not be connected to; None where its monitor shows no reason."""
        sample = self._samples.get(node)
        if sample is None:
            return None
        seen = backend_state(sample, self._now_ns)
        return f"its monitor: {seen.reason}" if seen.state is State.BUSY else None

    async def close(self) -> None:
        """Let go of the connection."""
        if self._reader:
            await self._reader.close()
