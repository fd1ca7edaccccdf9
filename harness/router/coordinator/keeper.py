"""Looks after a coordinator from its first token to its end: stalls are ended, idle ones are unloaded."""

import asyncio

from harness.contracts.coordinator_state import CoordinatorPhase
from harness.contracts.diagnosis import FailureClass
from harness.router.config import RouterConfig
from harness.router.coordinator.launch import Launcher
from harness.router.coordinator.liveness import Watcher
from harness.router.coordinator.readiness import LoadError, wait_ended
from harness.router.coordinator.start import Start


class Keeper:
    """Ends a coordinator that is stalled or that nobody needs; leaves a slow one alone.

    Args:
        lease: held by whoever starts or stops coordinators.
    """

    def __init__(
        self, config: RouterConfig, watcher: Watcher, launcher: Launcher, lease: asyncio.Lock
    ) -> None:
        self._idle_unload_s = config.idle_unload_s
        self._watcher = watcher
        self._launcher = launcher
        self._lease = lease

    async def prove(self, start: Start) -> None:
        """Have it give one token.

        Raises:
            LoadError: it is stalled, or ended.
        """
        if found := await self._watcher.prove(start):
            start.state.diagnosis = found
            raise LoadError(found.failure_class, found.evidence[0].line)
        if start.process and start.process.exit:
            raise LoadError(FailureClass.UNKNOWN, "llama-server ended as soon as it was asked for a token")

    async def look_after(self, start: Start) -> None:
        """Until its end is known."""
        idle = asyncio.create_task(self._unload_when_idle(start))
        try:
            if found := await self._watcher.run(start):
                start.state.diagnosis = found
                start.signal("SIGKILL", f"stalled: {found.evidence[0].line}")
            await start.ended.wait()
        finally:
            await asyncio.gather(idle)

    async def _unload_when_idle(self, start: Start) -> None:
        while self._idle_unload_s and start.running:
            await start.idle_or_ended()
            if (left := self._idle_unload_s - start.quiet_s) > 0:
                await wait_ended(start, left)
                continue
            async with self._lease:
                if start.phase is CoordinatorPhase.READY and not start.state.requests_in_flight:
                    await self._launcher.stop(start, f"idle for {self._idle_unload_s:g} s", idle_s=0)
