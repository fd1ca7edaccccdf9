"""The coordinator: one llama-server at a time over the backends, lent to one request after the other."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from contextvars import Context
from pathlib import Path

import aiohttp

from harness.diagnosis.model import FailureClass
from harness.router.backend_watch import BackendWatch
from harness.router.catalogue import Catalogue
from harness.router.config import RouterConfig
from harness.router.errors import RouterError
from harness.router.forgotten import Forgotten
from harness.router.hold import Hold
from harness.router.keeper import Keeper
from harness.router.launch import Launcher, drop_page_cache
from harness.router.loading import wait_ended
from harness.router.loan import Loan
from harness.router.logs import log
from harness.router.metrics import Metrics
from harness.router.nodes import NodeSamples
from harness.router.planning import Planner
from harness.router.plans import LoadRequest
from harness.router.progress import Watcher
from harness.router.queue import QueueEntry, RequestQueue, Ticket
from harness.router.recovery import Recovery
from harness.router.restarts import Failure
from harness.router.start import Start
from harness.router.steps import Steps
from harness.router.turns import Grant, Load, Situation, next_step
from harness.router.witness import Witness
from harness.runs.schema import CoordinatorPhase, CoordinatorState

_KEPT_STARTS = 20
_DIAGNOSIS_WAIT_S = 5
_AHEAD = 1
"""Requests that wait inside llama-server itself, so that no slot is ever without work."""
_STOPPING = "the router stops"


class Coordinator:
    """Starts, watches, lends and stops llama-server. The backends are leased to one start at a time."""

    def __init__(
        self,
        config: RouterConfig,
        catalogue: Catalogue,
        session: aiohttp.ClientSession,
        metrics: Metrics,
        nodes: NodeSamples,
    ) -> None:
        self._config = config
        self._lease = asyncio.Lock()
        self._current: Start | None = None
        self._starts: deque[Start] = deque(maxlen=_KEPT_STARTS)
        self._asked: dict[str, LoadRequest] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loading: asyncio.Task[None] | None = None
        self._turn_over: asyncio.TimerHandle | None = None
        self._lost: str | None = None
        self._closing = False
        self.url = f"http://127.0.0.1:{config.coordinator_port}"
        self._steps = Steps(config)
        backends = BackendWatch(nodes)
        self.planner = Planner(config, catalogue, backends.samples)
        self._queue = RequestQueue(config.queue_limit)
        forgotten = Forgotten(nodes, config.address)
        self._recovery = Recovery(config, backends, forgotten, self._steps, metrics)
        witness = Witness(config, nodes)
        self._launcher = Launcher(config, session, self.url, metrics, witness, self._ended)
        watcher = Watcher(config, session, self.url, backends, self._steps)
        self._hold = Hold(self._let_go)
        self._keeper = Keeper(config, watcher, self._launcher, self._lease)

    @property
    def state(self) -> CoordinatorState:
        """Of the current start, or of the last one."""
        return self._current.state if self._current else CoordinatorState(phase=CoordinatorPhase.ABSENT)

    @property
    def loaded(self) -> str | None:
        """The model that is ready to answer; None while there is none."""
        state = self.state
        return state.model if state.phase is CoordinatorPhase.READY else None

    @property
    def starts(self) -> list[CoordinatorState]:
        """The last starts, oldest first."""
        return [start.state for start in self._starts]

    @property
    def closing(self) -> bool:
        """Whether the router is stopping: nothing is started any more."""
        return self._closing

    @property
    def queue(self) -> list[QueueEntry]:
        """The requests that wait, next first."""
        return self._queue.view()

    @property
    def failures(self) -> list[Failure]:
        """What went wrong with the last coordinators, oldest first."""
        return self._recovery.budget.history

    def log_path(self, start_id: str) -> Path | None:
        """Log of one of the last starts."""
        return next((start.log_path for start in self._starts if start.id == start_id), None)

    async def load(self, request: LoadRequest) -> CoordinatorState:
        """Make the model ready as asked; another one is unloaded first.

        Raises:
            RouterError: it cannot be planned, did not load in time, ended, or was not distributed.
        """
        self._recovery.budget.forgive(time.time_ns())
        try:
            async with self._lease:
                start = await self._load(request, drain_s=self._config.drain_s)
                self._asked[start.plan.model] = request.model_copy(update={"cold": False, "deadline_s": None})
                return start.state
        finally:
            self._pump()

    async def unload(self, *, signal: str, deadline_s: float) -> CoordinatorState:
        """Stop the coordinator: when idle, or busy once ``deadline_s`` has passed. Ends a load too."""
        start = self._abort_load("unloaded while it was loading")
        try:
            async with self._lease:
                self._lost = None
                if start is None and self._current and self._current.running:
                    start = self._current
                    await self._launcher.stop(start, "unload asked for", signal=signal, idle_s=deadline_s)
                return start.state if start else CoordinatorState(phase=CoordinatorPhase.ABSENT)
        finally:
            self._pump()

    async def hold(self, *, deadline_s: float, drain_s: float) -> CoordinatorState:
        """Let requests wait, finish those in flight, stop the coordinator: the backends may then be changed.

        Loads that an administrator asks for are not held. It ends with ``resume``, or after ``deadline_s``.

        Args:
            deadline_s: how long requests wait at most.
            drain_s: how long answers in flight may take before the coordinator is stopped all the same.
        """
        self._hold.begin(deadline_s)
        log("requests are held", deadline_s=deadline_s)
        async with self._lease:
            if self._current and self._current.running:
                await self._launcher.stop(self._current, "held for a change of backends", idle_s=drain_s)
            return self.state

    def resume(self) -> None:
        """End the hold; requests that waited go on."""
        self._hold.end()

    @property
    def held_s(self) -> float:
        """For how long requests are held yet; 0 where they are not."""
        return self._hold.left_s

    def _let_go(self) -> None:
        log("requests go on")
        self._pump()

    @asynccontextmanager
    async def lend(self, model: str) -> AsyncIterator[Loan]:
        """A ready coordinator for one request; loads the model if need be, once for all who wait.

        Raises:
            RouterError: the queue is full, the wait was too long, or the load failed.
        """
        if self._closing:
            raise RouterError(503, "stopping", _STOPPING, retry_after_s=10)
        ticket = self._queue.enter(model, self._serving)
        self._pump()
        try:
            start = await self._turn(ticket)
            began = time.monotonic()
            yield Loan(start, ticket.position, began - ticket.since)
            if not start.ended.is_set():
                self._queue.answered(time.monotonic() - began)
                self._recovery.budget.succeeded()
        finally:
            self._queue.leave(ticket)
            if not ticket.granted.done():
                ticket.granted.cancel()
            elif not ticket.granted.exception():
                ticket.granted.result().give()
            self._pump()

    async def explain(self, start: Start, seen: str) -> RouterError:
        """The error for a request whose coordinator broke off: with the diagnosis, if the child has died."""
        if await wait_ended(start, _DIAGNOSIS_WAIT_S) and (diagnosis := start.state.diagnosis):
            message = f"the coordinator ended while it answered ({start.failure}): {diagnosis.advice}"
            return RouterError(
                502, start.failure, message, diagnosis=diagnosis, retry_after_s=self._retry_after_s(start)
            )
        return RouterError(502, FailureClass.UNKNOWN, f"the coordinator broke off the answer: {seen}")

    async def close(self) -> None:
        """Stop the child before anything else goes away; nothing is started after this."""
        self.refuse()
        await self._stop_for_good()
        if self._turn_over:
            self._turn_over.cancel()
        await self._launcher.close()
        await asyncio.gather(*self._tasks)

    def refuse(self) -> None:
        """The router is about to stop: refuse who waits and who comes, start nothing.

        Who is being answered has ``drain_s``; after that the coordinator is stopped all the same, and they
        get the error that says so.
        """
        if self._closing:
            return
        self._closing = True
        self._queue.fail(RouterError(503, "stopping", _STOPPING, retry_after_s=10))
        self._background(self._stop_for_good())

    async def _stop_for_good(self) -> None:
        self._abort_load(_STOPPING)
        async with self._lease:
            if self._current and self._current.running:
                await self._launcher.stop(self._current, _STOPPING, idle_s=self._config.drain_s)

    @property
    def _serving(self) -> str | None:
        current = self._current
        return current.plan.model if current and current.phase is CoordinatorPhase.READY else None

    async def _turn(self, ticket: Ticket) -> Start:
        await asyncio.wait({ticket.granted}, timeout=self._config.queue_wait_s)
        if not ticket.granted.done():
            raise RouterError(
                503,
                "queue_timeout",
                f"{ticket.model} had no turn within {self._config.queue_wait_s:g} s; see /admin/queue",
                retry_after_s=self._queue.retry_after_s(self._serving),
            )
        return ticket.granted.result()

    def _retry_after_s(self, start: Start) -> int:
        return max(1, round(self._queue.load_s(start.plan.model)))

    def _abort_load(self, why: str) -> Start | None:
        self._recovery.interrupt(why)
        start = self._current
        if start is None or start.phase is not CoordinatorPhase.STARTING:
            return None
        start.aborted = why
        return start

    def _background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        # Work for everybody: no line of its log carries the id of the request that happened to begin it.
        task = asyncio.create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _situation(self) -> Situation:
        waiting, current, serving = self._queue.models, self._current, self._serving
        if serving is None and not waiting and self._lost and not self._closing:
            waiting = [self._lost]
        if serving is None or current is None or current.ready_at is None:
            return Situation(waiting, None)
        return Situation(
            waiting,
            serving,
            in_flight=current.state.requests_in_flight,
            capacity=current.plan.parallel + _AHEAD,
            served_s=time.monotonic() - current.ready_at,
            turn_s=max(self._config.turn_s, current.timings.load_s or 0),
        )

    def _pump(self) -> None:
        """Let go out what may go out, and see to it that what has to be loaded is."""
        if self._turn_over:
            self._turn_over.cancel()
            self._turn_over = None
        if self._hold.active:
            return
        while isinstance(step := next_step(self._situation()), Grant):
            if self._current is not None:
                self._queue.grant(step.index, self._current)
        if isinstance(step, Load):
            if self._loading is None:
                self._loading = self._background(self._make_ready())
        elif step.seconds is not None:
            self._turn_over = asyncio.get_running_loop().call_later(step.seconds, self._pump)

    async def _make_ready(self) -> None:
        """Load the model whose turn it is; who waits for it shares its failure."""
        model: str | None = None
        failure: RouterError | None = None
        try:
            async with self._lease:
                step = next_step(self._situation())
                if not isinstance(step, Load) or self._hold.active:
                    return
                model = step.model
                failure = RouterError(500, "error", f"{model}: the load broke off: see the router's journal")
                self._lost = None
                await self._load_for_requests(model)
                failure = None
        except RouterError as error:
            failure = error
        finally:
            # Whatever happened: nobody may wait for ever.
            if failure:
                self._steps("given up", model=model, error=failure.message)
                self._queue.fail(failure, model)
            self._loading = None
            self._pump()

    async def _load_for_requests(self, model: str) -> None:
        if self._current and self._current.running:
            reason = f"{model} is to be loaded"
            await self._launcher.stop(self._current, reason, idle_s=self._config.switch_drain_s)
        asked = self._asked.get(model) or LoadRequest(model=model)

        async def load(request: LoadRequest) -> Start:
            return await self._load(request, for_requests=True)

        await self._recovery.load(asked, load)

    async def _load(self, request: LoadRequest, *, drain_s: float = 0, for_requests: bool = False) -> Start:
        if self._closing:
            raise RouterError(503, "stopping", "the router is stopping", retry_after_s=10)
        asked_ns = time.time_ns()
        planned = await self.planner.prepare(request)
        plan, argv = planned.plan, planned.argv
        current = self._current
        if current and current.serves(plan.model) and current.state.argv == argv and not request.cold:
            return current
        room_ns = time.time_ns()
        if current and current.running:
            await self._launcher.stop(current, f"{plan.model} is to be loaded", idle_s=drain_s)
        if not for_requests:  # recovery has looked, and planned without them
            await self._recovery.check(plan)
        if request.cold:
            await asyncio.to_thread(drop_page_cache, Path(plan.model_path))
        if self._closing:
            raise RouterError(503, "stopping", _STOPPING, retry_after_s=10)
        # What was asked for besides the load, an unload and a cold cache, is not part of its time.
        start = Start(plan, argv, self._config.log_dir, requested_ns=asked_ns + time.time_ns() - room_ns)
        self._current = start
        self._starts.append(start)
        deadline_s = request.deadline_s or self._config.load_deadline_s
        await self._launcher.launch(
            start, deadline_s=deadline_s, proof=self._keeper.prove if for_requests else None
        )
        self.planner.came_up(planned, start.state.report)
        self._lost = None
        self._queue.loaded(plan.model, start.timings.load_s or 0)
        self._background(self._look_after(start, for_requests))
        return start

    async def _look_after(self, start: Start, for_requests: bool) -> None:
        await self._keeper.look_after(start)
        if start.unasked and for_requests and start is self._current:
            self._lost = start.plan.model
            self._pump()

    def _ended(self, start: Start) -> None:
        if start.unasked:
            log("coordinator lost", start=start.id, failure=start.failure)
            self._recovery.failed(start)
        self._pump()
