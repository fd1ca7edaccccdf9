"""What is known of the backends between two starts: from their nodes' samples, or by asking the idle."""

import asyncio
import time
from collections.abc import Mapping, Sequence

from harness.llama.rpc.client import ClosedError, RpcError, ask
from harness.llama.rpc.messages import ProtocolError
from harness.monitor.backend_state import State, backend_state
from harness.monitor.sample import RPC_SERVERS, Sample
from harness.router.config import Backend
from harness.router.nodes.samples import NodeSamples

_AGAIN_S = 0.25
_ASK_S = 5.0
"""A backend that frees the buffers of a large model answers nobody meanwhile."""


class BackendWatch:
    """Knows whether a backend is there. Connects only to those that the caller holds and that are idle.

    ``NodeSamples`` is what the nodes' monitors say, to whoever asks and never by connecting; this is what one
    who holds the backends may do besides: ask them, and wait for them.
    """

    def __init__(self, nodes: NodeSamples) -> None:
        self._nodes = nodes

    async def samples(self, nodes: Sequence[str]) -> dict[str, Sample]:
        """The newest samples of the nodes that are heard of."""
        return await self._nodes.heard(list(nodes))

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
