"""What is known of the backends between two starts: from their nodes' samples, or by asking the idle."""

import asyncio
import time
from collections.abc import Mapping, Sequence

from harness.monitor.config import MonitorError
from harness.monitor.latest import AsyncLatestReader
from harness.monitor.sample import RPC_SERVERS, Sample
from harness.monitor.state import State, backend_state
from harness.monitor.store import RedisSettings
from harness.router.config import Backend
from harness.router.logs import log
from harness.rpc.client import ClosedError, RpcError, ask
from harness.rpc.messages import ProtocolError

_AGAIN_S = 0.25
_ASK_S = 5.0
"""A backend that frees the buffers of a large model answers nobody meanwhile."""


class BackendWatch:
    """Knows whether a backend is there. Connects only to those that the caller holds and that are idle.

    Args:
        redis: where the nodes' samples are; None where there is no Redis.
    """

    def __init__(self, redis: RedisSettings | None) -> None:
        self._reader = AsyncLatestReader(redis) if redis else None

    async def close(self) -> None:
        """Let go of the connection to Redis."""
        if self._reader:
            await self._reader.close()

    async def samples(self, nodes: Sequence[str]) -> dict[str, Sample]:
        """The newest samples of the nodes that have one; none where Redis does not answer."""
        if self._reader is None:
            return {}
        try:
            latest = (await self._reader.read(nodes)).latest
        except MonitorError as error:
            log("no samples", error=str(error))
            return {}
        return {node: sample for node, sample in latest.items() if sample}

    async def absent(self, backends: Sequence[Backend], patience_s: float) -> dict[str, str]:
        """The backends that did not come back within ``patience_s``: node and what was seen of it.

        No coordinator may be running: backends are asked for their version.
        """
        deadline = time.monotonic() + patience_s
        seen = await asyncio.gather(*(self._awaited(backend, deadline) for backend in backends))
        return {
            backend.node: reason for backend, reason in zip(backends, seen, strict=True) if reason is not None
        }

    async def _awaited(self, backend: Backend, deadline: float) -> str | None:
        while (reason := await self._absent_now(backend)) is not None:
            if time.monotonic() >= deadline:
                return reason
            await asyncio.sleep(_AGAIN_S)
        return None

    async def _absent_now(self, backend: Backend) -> str | None:
        sample = (await self.samples([backend.node])).get(backend.node)
        if sample:
            state = backend_state(sample, time.time_ns())
            if state.state in (State.DOWN, State.STARTING):
                return f"{backend.node}: {state.reason}"
        address, _, port = backend.endpoint.rpartition(":")
        try:
            await ask(address, int(port), reply_s=_ASK_S)
        except (RpcError, ProtocolError) as error:
            closed = isinstance(error, ClosedError)
            return f"{backend.node}: {'nobody listens on ' + backend.endpoint if closed else error}"
        return None


def cpu_seconds(samples: Mapping[str, Sample]) -> dict[str, float]:
    """CPU time that each node's rpc-server has used, to see whether it grows."""
    return {
        node: sum(process.cpu_s for process in sample.processes if process.name in RPC_SERVERS)
        for node, sample in samples.items()
    }
