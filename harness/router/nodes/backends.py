"""Checks of backends before a start: whether each answers, and whether it still serves a lost connection."""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence

from harness.common.sockets import has_connection
from harness.llama.rpc.client import BackendStatus, RpcError, ask
from harness.monitor.backend_state import State, backend_state
from harness.monitor.sample import RPC_SERVERS, Sample
from harness.router.config import Backend
from harness.router.nodes.samples import NodeSamples

_RETRY_S = 0.25
_REPLY_S = 5.0
"""A backend that frees the buffers of a large model answers no request meanwhile."""
_STALE_AFTER_NS = 2_000_000_000
"""Between two samples that agree: a connection that has just been closed is missing from the second."""
_STALE_WAIT_S = 5.0
_ANSWER_S = 2.0
_UNUSED_PORT = 9
"""Of the service "discard": a kernel refuses it at once. The port of rpc-server is never tried."""


class BackendWatch:
    """Probes backends. Connects only to those that the caller has leased and that are idle."""

    def __init__(self, nodes: NodeSamples) -> None:
        self.samples = nodes.latest
        """Gives the newest samples of the nodes that have one."""

    async def absent(self, backends: Sequence[Backend], patience_s: float) -> dict[str, str]:
        """The backends that did not come back within ``patience_s``: by node, the reason.

        No coordinator may be running: backends are asked for their version.
        """
        deadline = time.monotonic() + patience_s
        reasons = await asyncio.gather(*(self._wait_for(backend, deadline) for backend in backends))
        return {backend.node: reason for backend, reason in zip(backends, reasons, strict=True) if reason}

    async def unreachable(self, addresses: Mapping[str, str]) -> dict[str, str]:
        """The nodes whose kernel does not answer a connection attempt: by node, the reason.

        A firewall that drops such attempts looks the same, so what counts is a node that answered before.

        Args:
            addresses: by node.
        """
        reasons = await asyncio.gather(*(_no_answer(address) for address in addresses.values()))
        return {node: reason for node, reason in zip(addresses, reasons, strict=True) if reason}

    async def _wait_for(self, backend: Backend, deadline: float) -> str | None:
        while reason := await self._absent_now(backend):
            if time.monotonic() >= deadline:
                return reason
            await asyncio.sleep(_RETRY_S)
        return None

    async def _absent_now(self, backend: Backend) -> str | None:
        if sample := (await self.samples([backend.node])).get(backend.node):
            state = backend_state(sample, time.time_ns())
            if state.state in (State.DOWN, State.STARTING):
                return f"{backend.node}: {state.reason}"
        try:
            await ask(backend.address, backend.port, reply_s=_REPLY_S)
        except RpcError as error:
            if error.status is BackendStatus.CLOSED:
                return f"{backend.node}: nobody listens on {backend.endpoint}"
            return f"{backend.node}: {error}"
        return None


async def _no_answer(address: str) -> str | None:
    try:
        async with asyncio.timeout(_ANSWER_S):
            _, writer = await asyncio.open_connection(address, _UNUSED_PORT)
    except ConnectionRefusedError:
        return None
    except TimeoutError:
        return f"no answer from {address} within {_ANSWER_S:.0f} s"
    except OSError as error:
        return f"{address}: {os.strerror(error.errno) if error.errno else error}"
    writer.close()
    return None


def cpu_seconds(samples: Mapping[str, Sample]) -> dict[str, float]:
    """CPU time that each node's rpc-server has used: it grows while the server works."""
    return {
        node: sum(process.cpu_s for process in sample.processes if process.name in RPC_SERVERS)
        for node, sample in samples.items()
    }


class StaleConnections:
    """Backends that still serve a connection which this machine no longer has, as after a cut link.

    rpc-server waits for its client's next command without a limit and without keep-alive. A client that could
    not close its end, because the link was cut or the machine went down, holds it for ever, and the next load
    would wait behind that client until its deadline. The socket tables of the node and of this machine are
    compared; nothing is connected to.

    Args:
        address: this machine's, from which backends are connected to.
    """

    def __init__(self, nodes: NodeSamples, address: str) -> None:
        self._nodes = nodes
        self._address = address

    async def find(self, backends: Sequence[Backend]) -> dict[str, str]:
        """By node, the problem and its remedy. Takes seconds where a backend is suspect."""
        suspects = await self._suspects(backends)
        problems: dict[str, str] = {}
        deadline = time.monotonic() + _STALE_WAIT_S
        while suspects and time.monotonic() < deadline:
            await asyncio.sleep(_RETRY_S)
            current = await self._suspects(backends)
            for node, (peer, first_ns) in list(suspects.items()):
                current_peer, time_ns = current.get(node, ("", 0))
                if current_peer != peer:
                    del suspects[node]
                elif time_ns - first_ns >= _STALE_AFTER_NS:
                    problems[node] = (
                        f"{node}: its rpc-server still serves {peer}, a connection that this machine "
                        "no longer has (its link was cut, or this machine was restarted): on that node, "
                        "systemctl restart llama-rpc-server"
                    )
                    del suspects[node]
        return problems

    async def _suspects(self, backends: Sequence[Backend]) -> dict[str, tuple[str, int]]:
        """By node, the lost client that its backend serves, and the time of the sample that says so."""
        samples = await self._nodes.latest([backend.node for backend in backends])
        return {
            backend.node: (peer, sample.time_ns)
            for backend in backends
            if (sample := samples.get(backend.node)) and (peer := self._lost_peer(sample, backend.endpoint))
        }

    def _lost_peer(self, sample: Sample, endpoint: str) -> str | None:
        peer = sample.rpc.peer if sample.rpc else None
        if peer is None or peer.rpartition(":")[0] != self._address or has_connection(peer, endpoint):
            return None
        return peer
