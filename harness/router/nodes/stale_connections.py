"""Backends that still serve a connection which this machine no longer has: what a cut link leaves behind.

rpc-server waits for its client's next command without a limit and without keep-alive. A client whose end
could not reach it, because the link was cut or the machine went down, holds it for ever, and the next load
would wait behind that client until its deadline.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from harness.monitor.sample import Sample
from harness.router.config import Backend
from harness.router.nodes.samples import NodeSamples
from harness.router.nodes.sockets import has_connection

_APART_NS = 2_000_000_000
"""Between two samples that say the same: a connection that has just been closed is gone from the second."""
_WAIT_S = 5.0
_AGAIN_S = 0.25


@dataclass(frozen=True)
class _Suspect:
    peer: str
    """Whom the backend serves, by its node's socket table."""
    time_ns: int
    """When its node said so first."""


class Forgotten:
    """Finds them from the two socket tables, the node's and our own; nothing is connected to.

    Args:
        address: this machine's, from which backends are reached.
    """

    def __init__(self, nodes: NodeSamples, address: str) -> None:
        self._nodes = nodes
        self._address = address

    async def among(self, backends: Sequence[Backend]) -> dict[str, str]:
        """By node, what is wrong and what to do: at once where none looks so, else after some seconds."""
        suspects = await self._look(backends)
        found: dict[str, str] = {}
        deadline = time.monotonic() + _WAIT_S
        while suspects and time.monotonic() < deadline:
            await asyncio.sleep(_AGAIN_S)
            now = await self._look(backends)
            for node, first in list(suspects.items()):
                if node not in now or now[node].peer != first.peer:
                    del suspects[node]
                elif now[node].time_ns - first.time_ns >= _APART_NS:
                    found[node] = _in_words(node, first.peer)
                    del suspects[node]
        return found

    async def _look(self, backends: Sequence[Backend]) -> dict[str, _Suspect]:
        samples = await self._nodes.heard([backend.node for backend in backends])
        return {
            backend.node: _Suspect(peer, sample.time_ns)
            for backend in backends
            if (sample := samples.get(backend.node)) and (peer := self._lost_peer(sample, backend.endpoint))
        }

    def _lost_peer(self, sample: Sample, endpoint: str) -> str | None:
        peer = sample.rpc.peer if sample.rpc else None
        if peer is None or peer.rpartition(":")[0] != self._address:
            return None
        return None if has_connection(peer, endpoint) else peer


def _in_words(node: str, peer: str) -> str:
    return (
        f"{node}: its rpc-server still serves {peer}, a connection that this machine no longer has (its link "
        "was cut, or this machine was restarted): on that node, systemctl restart llama-rpc-server"
    )
