"""Requests that end a pool server. Its node's systemd runs it, and the node's samples show how it ended."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from harness.monitor.sample import Sample
from harness.router.failures import CRASH_SIGNALS, Failures, Fate, describe
from harness.router.in_flight import SentRequest
from harness.router.pool.server import ServerState

UNIT = "llama-pool-server.service"

_WAIT_S = 3.0
"""Monitors publish once a second, and look at a unit whose process has gone at once."""
_POLL_S = 0.25
_CLOCKS_NS = 100_000_000
"""How far the clocks of two nodes may differ after the correction."""

Samples = Callable[[Sequence[str]], Awaitable[dict[str, Sample]]]
"""Gives the newest samples of those nodes that have one."""


class PoolCrashes:
    """Blames the request that a pool server had when it died of a signal that it caused itself."""

    def __init__(self, samples: Samples, failures: Failures) -> None:
        self._samples = samples
        self._failures = failures

    async def fate(self, server: ServerState, request: SentRequest) -> Fate:
        """What became of a server that broke ``request`` off; waits for its node's next samples."""
        deadline_s = time.monotonic() + _WAIT_S
        while (exited_ns := await self.look(server)) is not None and time.monotonic() < deadline_s:
            if exited_ns + _CLOCKS_NS >= request.sent_ns:
                if server.poison:
                    return Fate.POISONED if server.poison.digest == request.digest else Fate.NOTHING
                return Fate.NOTHING if server.by_request else Fate.LOST
            await asyncio.sleep(_POLL_S)
        return Fate.NOTHING

    async def look(self, server: ServerState) -> int | None:
        """Blame a request if the server has crashed since the last look.

        Returns:
            When the server last ended, on the head node's clock, 0 for never; None where that is unknown.
        """
        node = server.config.node
        sample = (await self._samples([node])).get(node)
        unit = sample.units.get(UNIT) if sample and server.config.deployed else None
        if sample is None or unit is None:
            return None
        if unit.exited_ns is None:
            return 0
        exited_ns = unit.exited_ns - (sample.time_ns - sample.head_time_ns)
        if exited_ns > server.judged_ns:
            server.judged_ns = exited_ns
            # A request is in flight at one end, whatever caused that and whatever the node says later.
            had = server.sent.at(exited_ns + _CLOCKS_NS)
            sent = [request for request in had if request not in server.ended_with]
            server.ended_with.extend(sent)
            crashed = unit.exit_code in ("killed", "dumped") and unit.exit_status in CRASH_SIGNALS
            server.by_request, server.poison = crashed and bool(had), None
            if crashed and sent:
                ended = f"when signal {unit.exit_status} ended {UNIT} of {node}"
                poison = server.poison = self._failures.culprit(sent, sent, node=node)
                line = f"{describe(poison, sent, sent)} {ended}"
                if poison:
                    self._failures.blame(poison, line, sent, node=node)
                else:
                    self._failures.note_suspects(sent, line)
        return exited_ns
