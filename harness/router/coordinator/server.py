"""The one llama-server over the backends: planned, started, looked after and stopped."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from pathlib import Path

import aiohttp

from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.load_request import LoadRequest
from harness.contracts.plan import Plan
from harness.router.config import RouterConfig
from harness.router.coordinator.keeper import Keeper
from harness.router.coordinator.launch import Launcher, drop_page_cache
from harness.router.coordinator.liveness import Watcher
from harness.router.coordinator.start import Start
from harness.router.coordinator.witness import Witness
from harness.router.errors import RouterError
from harness.router.http.metrics import Metrics
from harness.router.models.planner import Planner

STOPPING = "the router stops"
_KEPT_STARTS = 20
_LOOK_EVERY_S = 2.0


class CoordinatorServer:
    """At most one process at a time. The backends are leased to it: who starts or stops it holds ``lease``.

    Args:
        url: where it is to listen.
        planner: makes its plans, and learns from those that came up.
        check: asked before a load that no recovery looked after, and during every one; raises what speaks
            against its plan.
        on_end: called once the end of a process is known and diagnosed.
    """

    def __init__(
        self,
        config: RouterConfig,
        session: aiohttp.ClientSession,
        url: str,
        *,
        planner: Planner,
        watcher: Watcher,
        witness: Witness,
        metrics: Metrics,
        check: Callable[[Plan], Awaitable[None]],
        on_end: Callable[[Start], None],
    ) -> None:
        self._config = config
        self._planner = planner
        self._check = check
        self._closing = False
        self.lease = asyncio.Lock()
        self.current: Start | None = None
        """The start of now, or the last one."""
        self.starts: deque[Start] = deque(maxlen=_KEPT_STARTS)
        """The last starts, oldest first."""
        self._launcher = Launcher(config, session, url, metrics, witness, on_end)
        self._keeper = Keeper(config, watcher, self._launcher, self.lease)

    @property
    def state(self) -> CoordinatorState:
        """Of the current start, or of the last one."""
        return self.current.state if self.current else CoordinatorState(phase=CoordinatorPhase.ABSENT)

    @property
    def serving(self) -> str | None:
        """The model that requests can be sent for now."""
        current = self.current
        return current.plan.model if current and current.phase is CoordinatorPhase.READY else None

    @property
    def ending(self) -> bool:
        """Whether the process has gone, and why is not known yet."""
        current = self.current
        if current is None or current.process is None:
            return False
        return current.process.exit is not None and not current.ended.is_set()

    async def load(self, request: LoadRequest, *, drain_s: float = 0, for_requests: bool = False) -> Start:
        """Make a model ready as asked: with the process that serves it so already, else with a new one.

        Args:
            drain_s: how long answers of the model before may take.
            for_requests: have it prove itself with a token; recovery has looked at the backends.

        Raises:
            RouterError: it cannot be planned, did not load in time, ended, or was not distributed.
        """
        self._refuse_if_closing()
        asked_ns = time.time_ns()
        planned = await self._planner.prepare(request)
        plan, argv = planned.plan, planned.argv
        current = self.current
        if current and current.serves(plan.model) and current.state.argv == argv and not request.cold:
            return current
        room_ns = time.time_ns()
        await self.stop(f"{plan.model} is to be loaded", idle_s=drain_s)
        if not for_requests:
            await self._check(plan)
        if request.cold:
            await asyncio.to_thread(drop_page_cache, Path(plan.model_path))
        self._refuse_if_closing()
        # What was asked for besides the load, an unload and a cold cache, is not part of its time.
        start = Start(plan, argv, self._config.log_dir, requested_ns=asked_ns + time.time_ns() - room_ns)
        self.current = start
        self.starts.append(start)
        deadline_s = request.deadline_s or self._config.load_deadline_s
        watch = asyncio.create_task(self._watch_backends(start), context=Context())
        try:
            await self._launcher.launch(
                start, deadline_s=deadline_s, proof=self._keeper.prove if for_requests else None
            )
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        self._planner.came_up(planned, start.state.report)
        return start

    async def _watch_backends(self, start: Start) -> None:
        """Give a load up once something speaks against its plan: a node may have been silent before."""
        while start.hopeless is None:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                await self._check(start.plan)
            except RouterError as error:
                start.hopeless = error.message

    async def stop(self, reason: str, *, idle_s: float, signal: str = "SIGTERM") -> None:
        """Stop what runs, when idle, or busy once ``idle_s`` has passed."""
        if self.current and self.current.running:
            await self._launcher.stop(self.current, reason, idle_s=idle_s, signal=signal)

    async def look_after(self, start: Start) -> None:
        """Until its end is known."""
        await self._keeper.look_after(start)

    def abort_load(self, why: str) -> Start | None:
        """End a load that is going on; needs no lease. The start it was, if there was one."""
        start = self.current
        if start is None or start.phase is not CoordinatorPhase.STARTING:
            return None
        start.aborted = why
        return start

    def refuse(self) -> None:
        """Start nothing any more."""
        self._closing = True

    async def close(self) -> None:
        """Wait until the ends of all processes are known."""
        await self._launcher.close()

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise RouterError(503, "stopping", STOPPING, retry_after_s=10)
