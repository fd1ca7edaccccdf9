"""Slow or stalled? Told apart by what moves, never by how long an answer takes.

A stalled backend leaves llama-server in one ``recv`` for ever: its main thread does not wake, no token comes,
a canary gets none, and no backend's rpc-server uses CPU time. A slow one shows at least one of these.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.diagnosis.rules import STOPPED_BY_SOMEBODY
from harness.monitor.backend_state import State, backend_state
from harness.monitor.sample import Sample
from harness.router.config import RouterConfig
from harness.router.coordinator.canary import canary
from harness.router.coordinator.readiness import wait_ended
from harness.router.coordinator.start import Start
from harness.router.coordinator.steps import Steps
from harness.router.nodes.probe import BackendWatch, cpu_seconds

_LOOK_S = 1.0
_ADVICE = (
    "See on each backend's node that rpc-server runs and is not stopped (ps, state T), that the node is up "
    "and its link passes traffic."
)


@dataclass(frozen=True)
class Look:
    """Counters of which at least one grows while a coordinator works."""

    moved_at: float
    """When a byte of an answer last came, or a request was last sent; monotonic seconds."""
    awake: int
    """How often llama-server's main thread has slept and woken."""
    samples: Mapping[str, Sample]
    """Newest sample of each backend's node that is heard of: it has the CPU time of its rpc-server."""


def stalled(
    still_s: float,
    samples: Mapping[str, Sample],
    nodes: frozenset[str],
    *,
    now_ns: int,
    seen_s: float,
    unseen_s: float,
) -> Diagnosis | None:
    """The diagnosis of a coordinator of which nothing has moved for ``still_s``; None while it may be slow.

    Args:
        samples: newest samples of the backends' nodes, where they are heard of.
        nodes: nodes of the plan.
        seen_s: enough stillness where every node is heard of, or one says that its backend is gone.
        unseen_s: enough where nodes say nothing.
    """
    gone = {
        node: state.reason
        for node, sample in samples.items()
        if (state := backend_state(sample, now_ns)).state in (State.DOWN, State.STARTING)
    }
    decided = bool(gone) or nodes <= samples.keys()
    if still_s < (seen_s if decided else unseen_s):
        return None
    still = f"for {still_s:.0f} s no token, no wake-up of llama-server's main thread; a canary got none"
    lines = [Evidence(source="router", line=still)]
    lines += [Evidence(source=f"samples {node}", line=reason) for node, reason in gone.items()]
    if decided and not gone:
        lines.append(Evidence(source="samples", line="no backend's rpc-server used CPU time meanwhile"))
    return Diagnosis(
        failure_class=FailureClass.BACKEND_STALLED,
        evidence=lines,
        confidence=Confidence.CERTAIN if decided else Confidence.LIKELY,
        advice=_ADVICE,
    )


def broken_off(still_s: float) -> Diagnosis:
    """The diagnosis of a llama-server that broke off a request, and for ``still_s`` neither moves nor ends.

    Builds since 11434 do that for ever when a SIGTERM finds a request in flight.
    """
    line = f"llama-server broke off a request for one token, then nothing moved for {still_s:.0f} s"
    return Diagnosis(
        failure_class=FailureClass.STOPPED_BUSY,
        evidence=[Evidence(source="router", line=line)],
        confidence=Confidence.LIKELY,
        advice=STOPPED_BY_SOMEBODY,
    )


class Watcher:
    """Looks at a coordinator whose requests have gone without a byte for long."""

    def __init__(
        self,
        config: RouterConfig,
        session: aiohttp.ClientSession,
        url: str,
        backends: BackendWatch,
        steps: Steps,
    ) -> None:
        self._config = config
        self._session = session
        self._url = url
        self._backends = backends
        self._steps = steps

    async def prove(self, start: Start) -> Diagnosis | None:
        """Ask for one token; None once it came. Given up only when nothing moves: then the diagnosis."""
        if not self._config.canary_deadline_s:
            return None
        asked = asyncio.create_task(canary(self._session, self._url))
        try:
            await asyncio.wait({asked}, timeout=self._config.canary_deadline_s)
            while not asked.done():
                if found := await self._examine(start, asked):
                    return found
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        if asked.result():
            start.timings.canary_ns = time.time_ns()
            self._steps("canary answered", start=start.id)
        return None

    async def run(self, start: Start) -> Diagnosis | None:
        """Watch until the start has ended (None) or nothing of it moves any more (the diagnosis)."""
        while not start.ended.is_set():
            await start.busy_or_ended()
            if (quiet_s := start.quiet_s) < self._config.suspect_s:
                await wait_ended(start, self._config.suspect_s - quiet_s)
            elif await self._moves(start):
                await wait_ended(start, self._config.suspect_s)
            else:
                asked = asyncio.create_task(canary(self._session, self._url))
                try:
                    if found := await self._examine(start, asked):
                        return found
                finally:
                    asked.cancel()
                    await asyncio.gather(asked, return_exceptions=True)
        return None

    async def _moves(self, start: Start) -> bool:
        before = await self._look(start)
        await wait_ended(start, _LOOK_S)
        signs = signs_of_life(before, await self._look(start))
        self._steps("no byte for long", start=start.id, signs=signs)
        return bool(signs)

    async def _examine(self, start: Start, asked: asyncio.Task[bool]) -> Diagnosis | None:
        """Look again and again: None at the first sign of life, the diagnosis once there has been none."""
        began, nodes = time.monotonic(), frozenset(share.node for share in start.plan.shares)
        before = await self._look(start)
        while not start.ended.is_set():
            await wait_ended(start, _LOOK_S) if asked.done() else await asyncio.wait({asked}, timeout=_LOOK_S)
            now = await self._look(start)
            refused = asked.done() and not asked.result()
            signs = signs_of_life(before, now)
            if signs or (asked.done() and not refused):
                self._steps("it moves", start=start.id, signs=signs or ["canary"])
                return None
            still_s = time.monotonic() - began
            if refused:
                found = broken_off(still_s) if still_s >= self._config.suspect_s else None
            else:
                found = stalled(
                    still_s,
                    now.samples,
                    nodes,
                    now_ns=time.time_ns(),
                    seen_s=self._config.suspect_s,
                    unseen_s=self._config.stall_deadline_s,
                )
            if found and not start.ended.is_set():
                self._steps("stalled", start=start.id, evidence=[e.line for e in found.evidence])
                return found
        return None

    async def _look(self, start: Start) -> Look:
        samples = await self._backends.samples([share.node for share in start.plan.shares])
        return Look(start.moved_at, thread_wakes(start.state.pid or 0), samples)


def signs_of_life(before: Look, now: Look) -> list[str]:
    """What has moved between two looks."""
    signs = []
    if now.moved_at != before.moved_at:
        signs.append("bytes")
    if now.awake != before.awake:
        signs.append("main thread")
    worked = cpu_seconds(before.samples), cpu_seconds(now.samples)
    signs += [f"cpu of {node}" for node in worked[0] if worked[1].get(node, 0) > worked[0][node]]
    return signs


def thread_wakes(pid: int) -> int:
    """How often the main thread of a process has slept, or has been put off by others; 0 once it is gone."""
    try:
        status = Path(f"/proc/{pid}/task/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)
