"""What is loaded, with which settings, and how it is replaced: one change at a time."""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState, LoadReport
from harness.contracts.diagnosis import FailureClass
from harness.contracts.plan import LoadRequest
from harness.router.config import RouterConfig
from harness.router.coordinator.instance import CoordinatorInstance, make_room
from harness.router.coordinator.launcher import Launcher
from harness.router.coordinator.recovery import Recovery
from harness.router.drained import NODE_DRAINED, DrainedNodes
from harness.router.errors import RouterError
from harness.router.models.planner import PlannedLoad, ReplacedProcess

T = TypeVar("T")

_KEPT_STARTS = 20


class InterruptedLoadError(RouterError):
    """A load was ended for an unload, a hold or the shutdown."""

    def __init__(self, reason: str, *, requeue: bool, state: CoordinatorState | None = None) -> None:
        super().__init__(409, str(FailureClass.STOPPED), reason, state=state)
        self.requeue = requeue
        """Whether the requests that wait for it stay in the queue."""


class Changes:
    """One change of a coordinator at a time, and a way to end the load that is under way."""

    def __init__(self) -> None:
        self.lease = asyncio.Lock()
        """The lease of the backends: each load and each stop holds it."""
        self._load: asyncio.Task[Any] | None = None
        self._interrupt: InterruptedLoadError | None = None
        self._stops: list[InterruptedLoadError] = []
        """Stops that wait for the lease: no load begins before they have had it."""

    async def run_load(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a load in its own task, which ``interrupt`` cancels; the load then stops what it has started.

        The caller holds the lease.

        Raises:
            InterruptedLoadError: ``interrupt`` was called.
        """
        if self._stops:
            work.close()
            raise self._stops[0]
        task = asyncio.create_task(work)
        self._load, self._interrupt = task, None
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._interrupt is None or (caller and caller.cancelling()):
                raise
            raise self._interrupt from None
        finally:
            self._load = None

    @asynccontextmanager
    async def lease_to_stop(self, reason: str, *, requeue: bool) -> AsyncIterator[None]:
        """The lease for a stop: the load that is under way ends, and so does each that waits before it."""
        interrupt = InterruptedLoadError(reason, requeue=requeue)
        if self._load is not None and self._interrupt is None:
            self._interrupt = interrupt
            self._load.cancel(reason)
        self._stops.append(interrupt)
        try:
            await self.lease.acquire()
        finally:
            self._stops.remove(interrupt)
        try:
            yield
        finally:
            self.lease.release()


class LoadPlanner(Protocol):
    """Makes plans of loads, and learns from those that became ready."""

    async def prepare(self, request: LoadRequest, *, replaces: ReplacedProcess | None = None) -> PlannedLoad:
        """The plan and the command line; RouterError where there is none."""

    def came_up(self, load: PlannedLoad, report: LoadReport | None) -> None:
        """Learn from a load that is ready."""


class Loads:
    """The current instance, the last ones, and the settings that a lost one is loaded with again.

    A caller that loads or stops holds the lease.
    """

    def __init__(
        self,
        config: RouterConfig,
        planner: LoadPlanner,
        launcher: Launcher,
        recovery: Recovery,
        drained: DrainedNodes | None = None,
    ) -> None:
        self._config = config
        self.drained = drained or DrainedNodes()
        self._planner = planner
        self._launcher = launcher
        self._recovery = recovery
        self.current: CoordinatorInstance | None = None
        """The instance of now, or the last one."""
        self.starts: deque[CoordinatorInstance] = deque(maxlen=_KEPT_STARTS)
        """The last starts, oldest first."""
        self.settings: LoadRequest | None = None
        """Of a model that was lost or is held: requests load it with these, others with the router's own."""

    @property
    def state(self) -> CoordinatorState:
        """Of the current instance, or of the last one."""
        return self.current.state if self.current else CoordinatorState(phase=CoordinatorPhase.ABSENT)

    @property
    def running(self) -> CoordinatorInstance | None:
        """The current instance, if it has a process."""
        return self.current if self.current and self.current.running else None

    @property
    def ready(self) -> CoordinatorInstance | None:
        """The current instance, if requests can be sent to it."""
        current = self.current
        return current if current and current.phase is CoordinatorPhase.READY and not current.ending else None

    async def load_for_administrator(self, request: LoadRequest) -> CoordinatorInstance:
        """Load as asked; the instance that serves the same with the same command line is kept.

        Raises:
            RouterError: it cannot be planned, its log has no room, or it did not become ready.
        """
        requested_ns = time.time_ns()
        load = await self._planner.prepare(request, replaces=self._replaced())
        ready = self.ready
        if ready and ready.model == load.plan.model and ready.state.argv == load.argv and not request.cold:
            ready.use_settings(load.request)
            return ready
        await asyncio.to_thread(make_room, self._config)
        planned_ns = time.time_ns()
        self._refuse_drained(load)
        await self.stop(f"{load.plan.model} is to be loaded", idle_s=self._config.drain_s)
        await self._recovery.check_plan(load.plan)
        if request.cold:
            await asyncio.to_thread(_drop_page_cache, Path(load.plan.model_path))
        # The stop of the model before and a cold cache are not part of the load's time.
        requested_ns += time.time_ns() - planned_ns
        deadline_s = request.deadline_s or self._config.load_deadline_s
        return await self._start(load, load.request, requested_ns, deadline_s, for_requests=False)

    async def load_for_requests(self, model: str) -> CoordinatorInstance:
        """Load with the backends that answer, again after a failure that another start may mend.

        Raises:
            RouterError: a failure that would only come again, or the restart budget is spent.
        """
        kept = self.settings
        request = kept if kept and kept.model == model else LoadRequest(model=model)
        await asyncio.to_thread(make_room, self._config)
        replaced = self._replaced()
        await self.stop(f"{model} is to be loaded", idle_s=self._config.switch_drain_s)
        while True:
            attempt = await self._recovery.prepare(self.drained.chosen(self.drained.available(request)))
            requested_ns, deadline_s = time.time_ns(), self._config.load_deadline_s
            try:
                load = await self._planner.prepare(attempt.request, replaces=replaced)
                return await self._start(load, request, requested_ns, deadline_s, for_requests=True)
            except RouterError as error:
                if error.error_class != NODE_DRAINED:  # one that was drained meanwhile is left out next time
                    self._recovery.record_failed_load(attempt, error)

    def _refuse_drained(self, load: PlannedLoad) -> None:
        """Refuse a plan with a node that was drained after it was made (409)."""
        self.drained.refuse([share.node for share in load.plan.shares])

    def _replaced(self) -> ReplacedProcess | None:
        """What runs now: its memory is free once the load begins, though the nodes' samples still show it."""
        return ReplacedProcess.read(self.running.state.pid) if self.running else None

    async def stop(self, reason: str, *, idle_s: float, signal: str = "SIGTERM") -> None:
        """Stop the current instance when it is idle, or busy once ``idle_s`` has passed."""
        if self.running:
            await self._launcher.stop(self.running, reason, idle_s=idle_s, signal=signal)

    async def _start(
        self,
        load: PlannedLoad,
        request: LoadRequest,
        requested_ns: int,
        deadline_s: float,
        *,
        for_requests: bool,
    ) -> CoordinatorInstance:
        self._refuse_drained(load)
        instance = CoordinatorInstance(
            load, self._config.log_dir, request=request, for_requests=for_requests, requested_ns=requested_ns
        )
        if self.settings and self.settings.model != instance.model:
            self.settings = None
        self.current = instance
        self.starts.append(instance)
        await self._launcher.start(instance, deadline_s=deadline_s)
        self.settings = None
        self._planner.came_up(load, instance.state.report)
        return instance


def _drop_page_cache(path: Path) -> None:
    """Make the kernel forget what it has read of a file."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
