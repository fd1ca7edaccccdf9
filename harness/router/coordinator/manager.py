"""The coordinator: one llama-server over the backends, and the one place that decides about it.

The manager owns all state: the instance and its phase, the lease of the backends, the queue, and the load
that is under way. Phases (``CoordinatorPhase``), and what an event does in each:

========  ====================  ==================  =====================  ===========================
phase     request for the       request for         load by an             unload, hold, shutdown
          model                 another model       administrator
========  ====================  ==================  =====================  ===========================
absent    load it               load it             load it                end a load that is prepared
starting  wait                  wait                wait for the load      end the load
ready     send                  wait for a turn,    keep it if it is the   stop when idle, or busy at
                                then load it        same, else load        the deadline
stopping  wait                  wait                wait for the stop      stop at their own deadline
ended     load it               load it             load it                end a load that is prepared
========  ====================  ==================  =====================  ===========================

Transitions: absent or ended -> starting (planned, backends free) -> ready (health, model and log agree with
the plan; for requests also one token) -> stopping (unload, hold, switch, idle, shutdown) -> ended (the exit
is known and diagnosed). A load that fails or is interrupted goes from starting to stopping; a process that
dies goes to ended. An instance that dies while it is ready is *lost*: its settings are kept until the model
is loaded again or unloaded, and it is loaded again at once if requests had started it.

A load, with the stop before it, holds the lease; the next one waits for it. Unload, hold and shutdown do not
wait: they interrupt the load in whatever it waits for.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.diagnosis import FailureClass
from harness.contracts.plan import LoadRequest
from harness.router.config import RouterConfig
from harness.router.coordinator.engine import Engine
from harness.router.coordinator.instance import CoordinatorInstance
from harness.router.coordinator.loads import Changes, InterruptedLoadError, Loads
from harness.router.coordinator.recovery import Recovery
from harness.router.coordinator.scheduler import GrantRequest, QueueEntry, Scheduler, Slot, Ticket, WakeUp
from harness.router.drained import DrainedNodes
from harness.router.errors import RouterError
from harness.router.failures import Failure
from harness.router.json_log import log, log_debug
from harness.router.supervisor import TaskSupervisor

_STOPPING = "the router stops"
_AHEAD = 1
"""Requests that wait inside llama-server itself, so that no slot is ever without work."""
_DIAGNOSIS_WAIT_S = 10
"""Longer than the log of an ended process and then the nodes' samples are waited for."""


@dataclass(frozen=True)
class Grant:
    """A ready coordinator for one request, and how the request came by it."""

    instance: CoordinatorInstance
    url: str
    queue_position: int
    """Its position in the queue when it came; 1 is next."""
    waited_s: float

    @property
    def headers(self) -> dict[str, str]:
        """Headers that show the client its wait."""
        position = str(self.queue_position)
        return {"x-llama-queue-position": position, "x-llama-queue-wait": f"{self.waited_s:.3f}"}


class CoordinatorManager:
    """Loads, switches, stops and recovers one coordinator, for administrators and for requests."""

    def __init__(
        self, config: RouterConfig, engine: Engine, loads: Loads, recovery: Recovery, tasks: TaskSupervisor
    ) -> None:
        self._config = config
        self._engine = engine
        self._loads = loads
        self._recovery = recovery
        self._tasks = tasks
        self._scheduler = Scheduler(config.queue_limit)
        self._waiters: dict[Ticket, asyncio.Future[CoordinatorInstance]] = {}
        self._changes = Changes()
        self._serves_queue = False
        self._wake_up: asyncio.TimerHandle | None = None
        self.closing = False
        """The router is stopping: nothing is started any more."""

    @property
    def state(self) -> CoordinatorState:
        return self._loads.state

    @property
    def loaded(self) -> str | None:
        """The model that is ready to answer; None where there is none."""
        return self._loads.ready.model if self._loads.ready else None

    @property
    def starts(self) -> list[CoordinatorState]:
        return [instance.state for instance in self._loads.starts]

    @property
    def queue(self) -> list[QueueEntry]:
        return self._scheduler.entries(time.monotonic())

    @property
    def failures(self) -> list[Failure]:
        """The last failures of model servers, oldest first."""
        return list(self._recovery.failures.history)

    @property
    def held_s(self) -> float:
        """For how long requests are still held; 0 where they are not."""
        return self._scheduler.held_s(time.monotonic())

    def log_path(self, start_id: str) -> Path | None:
        return next((start.log_path for start in self._loads.starts if start.id == start_id), None)

    @asynccontextmanager
    async def acquire(self, model: str) -> AsyncIterator[Grant]:
        """A ready coordinator for one request; the model is loaded if need be, once for all who wait.

        Raises:
            RouterError: the queue is full, the wait was too long, or the load failed.
        """
        if self.closing:
            raise _stopping()
        ticket = self._scheduler.enqueue(model, self.loaded, time.monotonic())
        waiter = self._waiters[ticket] = asyncio.get_running_loop().create_future()
        try:
            self._dispatch()
            await asyncio.wait({waiter}, timeout=self._config.queue_wait_s)
            if not waiter.done():
                message = f"{model} had no turn within {self._config.queue_wait_s:g} s; see /admin/queue"
                retry_after_s = self._scheduler.retry_after_s(self.loaded)
                raise RouterError(503, "queue_timeout", message, retry_after_s=retry_after_s)
            instance, granted_s = waiter.result(), time.monotonic()
            yield Grant(instance, self._engine.url, ticket.position, granted_s - ticket.since_s)
            if not instance.ended.is_set():
                self._scheduler.record_answer(time.monotonic() - granted_s)
                self._recovery.budget.record_answer()
        finally:
            self._scheduler.leave(ticket)
            del self._waiters[ticket]
            # It may have been granted in the moment in which the client left.
            if waiter.done() and not waiter.exception():
                waiter.result().release()
            self._dispatch()

    async def describe_failure(self, instance: CoordinatorInstance, cause: str) -> RouterError:
        """The error for a request whose coordinator broke off: with the diagnosis, if the process died."""
        if await instance.ended_within(_DIAGNOSIS_WAIT_S) and (diagnosis := instance.state.diagnosis):
            if instance.by_request:
                # Only the administrator may see whose request it was.
                message = f"{instance.model}: a request ended the coordinator; ask again"
                return RouterError(502, "coordinator_lost", message, retry_after_s=1)
            message = f"the coordinator ended while it answered ({instance.failure}): {diagnosis.advice}"
            retry_s = max(1, round(self._scheduler.load_s(instance.model)))
            return RouterError(502, instance.failure, message, diagnosis=diagnosis, retry_after_s=retry_s)
        return RouterError(502, FailureClass.UNKNOWN, f"the coordinator broke off the answer: {cause}")

    async def load(self, request: LoadRequest) -> CoordinatorState:
        """Make the model ready as asked; another one is stopped first.

        Raises:
            RouterError: it cannot be planned, did not load in time, ended, was not distributed, or the load
                was interrupted.
        """
        try:
            async with self._changes.lease:
                self._recovery.budget.reset()
                instance = await self._run(request.model, self._loads.load_for_administrator(request))
                return instance.state
        finally:
            self._dispatch()

    async def unload(self, *, signal: str, deadline_s: float) -> CoordinatorState:
        """Stop the coordinator when it is idle, or busy at the deadline; end a load that is under way.

        Returns:
            The state of what was stopped; ``absent`` where nothing ran.
        """
        stopped = self._loads.running
        try:
            async with self._lease_to_stop("unloaded while it was loading", deadline_s):
                self._loads.settings = None
                self._scheduler.wanted = None
                stopped = self._loads.running or stopped
                await self._loads.stop("unload asked for", signal=signal, idle_s=deadline_s)
                return stopped.state if stopped else CoordinatorState(phase=CoordinatorPhase.ABSENT)
        finally:
            self._dispatch()

    async def hold(self, *, deadline_s: float, drain_s: float) -> CoordinatorState:
        """Let requests wait, finish those in flight, stop the coordinator: backends may then be changed.

        Loads that an administrator asks for later are not held. It ends with ``resume``, or at its deadline.

        Args:
            deadline_s: how long requests are held at most; the drain may take longer.
            drain_s: how long answers in flight may take before the coordinator is stopped all the same.
        """
        reason = "held for a change of backends"
        self._scheduler.hold(time.monotonic() + deadline_s)
        log("requests_held", deadline_s=deadline_s)
        self._dispatch()
        async with self._lease_to_stop(reason, drain_s, requeue=True):
            if running := self._loads.running:
                self._loads.settings = running.request
            await self._loads.stop(reason, idle_s=drain_s)
            return self.state

    @property
    def drained(self) -> DrainedNodes:
        return self._loads.drained

    async def drain(self, nodes: Sequence[str], *, drain_s: float) -> None:
        """Plan without backends; the model that uses one is loaded again on the others.

        A load that uses none of them goes on.

        Args:
            drain_s: how long answers in flight may take before the coordinator is stopped all the same.

        Raises:
            RouterError: there is no such backend.
        """
        self.drained.add(*nodes)
        if not _uses(self._loads.running, nodes):
            return  # nor can a load that is still planned use one: it is checked again before it starts
        reason = f"{', '.join(nodes)} {'is' if len(nodes) == 1 else 'are'} drained"
        try:
            async with self._lease_to_stop(reason, drain_s, requeue=True):
                running = self._loads.running
                if running and _uses(running, nodes):
                    self._loads.settings = running.request
                    await self._loads.stop(reason, idle_s=drain_s)
                    self._scheduler.wanted = running.model
        finally:
            self._dispatch()

    def resume(self) -> None:
        """End the hold; the requests that waited are served."""
        if self._scheduler.resume():
            log("requests_resumed")
        self._dispatch()

    def begin_shutdown(self) -> None:
        """Refuse the requests that wait and those that come, and start nothing any more.

        Requests in flight have ``drain_s``; then the coordinator is stopped all the same, and they get the
        error that says so.
        """
        if not self.closing:
            self.closing = True
            self._refuse_waiting(_stopping())
            if self._wake_up:
                self._wake_up.cancel()
                self._wake_up = None
            self._tasks.start("coordinator_shutdown", self._stop_for_good())

    async def close(self) -> None:
        """Stop the coordinator, and return when its end is known and no task is left."""
        self.begin_shutdown()
        await self._stop_for_good()
        await self._tasks.finished()

    async def _stop_for_good(self) -> None:
        async with self._lease_to_stop(_STOPPING, self._config.drain_s):
            await self._loads.stop(_STOPPING, idle_s=self._config.drain_s)

    @asynccontextmanager
    async def _lease_to_stop(
        self, reason: str, idle_s: float, *, requeue: bool = False
    ) -> AsyncIterator[None]:
        """Get the lease without waiting for a load, nor longer than ``idle_s`` for a drain."""
        if running := self._loads.running:
            running.drain_within(idle_s)
        async with self._changes.lease_to_stop(reason, requeue=requeue):
            yield

    def _slot(self) -> Slot:
        current, ready = self._loads.current, self._loads.ready
        ending = current is not None and current.ending
        if ready is None or ready.ready_s is None:
            return Slot(ending=ending)
        return Slot(
            serving=ready.model,
            in_flight=ready.state.requests_in_flight,
            capacity=ready.plan.parallel + _AHEAD,
            served_s=time.monotonic() - ready.ready_s,
            turn_s=max(self._config.turn_s, ready.timings.load_s or 0),
            ending=ending,
        )

    def _dispatch(self) -> None:
        """Carry out what the scheduler decides now; called after every event."""
        if self._wake_up:
            self._wake_up.cancel()
            self._wake_up = None
        if self.closing:
            return
        now_s = time.monotonic()
        if self._scheduler.hold_expired(now_s) and self._scheduler.resume():
            log("requests_resumed")
        for action in self._scheduler.next_actions(self._slot(), now_s):
            if isinstance(action, GrantRequest) and self._loads.ready:
                self._loads.ready.acquire()
                self._waiters[action.ticket].set_result(self._loads.ready)
            elif isinstance(action, WakeUp):
                self._wake_up = asyncio.get_running_loop().call_later(action.seconds, self._dispatch)
            elif not self._serves_queue:
                self._serves_queue = True
                self._tasks.start("coordinator_load", self._load_next())

    async def _load_next(self) -> None:
        """Load the model whose turn it is; the requests that wait for it share its failure."""
        model, error = None, None
        try:
            async with self._changes.lease:
                model = self._scheduler.model_to_load(self._slot(), time.monotonic())
                if model is None:
                    return
                error = RouterError(500, "error", f"{model}: the load broke off: see the router's journal")
                await self._run(model, self._loads.load_for_requests(model))
                error = None
        except RouterError as refused:
            error = None if isinstance(refused, InterruptedLoadError) and refused.requeue else refused
        finally:
            # Whatever happened: no request waits for ever, and nothing is tried for ever.
            if error:
                log_debug("load_given_up", model=model, error=error.message)
                self._scheduler.wanted = None
                self._refuse_waiting(error, model)
            self._serves_queue = False
            self._dispatch()

    def _refuse_waiting(self, error: RouterError, model: str | None = None) -> None:
        for ticket in self._scheduler.refuse(model):
            waiter = self._waiters[ticket]
            waiter.set_exception(error)
            waiter.exception()  # read here: its client may have left

    async def _run(self, model: str, load: Coroutine[Any, Any, CoordinatorInstance]) -> CoordinatorInstance:
        """Do a load, and look after the new instance. The caller holds the lease."""
        if self.closing:
            load.close()
            raise _stopping()
        before = self._loads.current
        try:
            instance = await self._changes.run_load(load)
        except InterruptedLoadError as error:
            state = self.state if self.state.model == model else None
            message = f"{model}: {error.message}"
            raise InterruptedLoadError(message, requeue=error.requeue, state=state) from None
        finally:
            started = self._loads.current
            if started is not None and started is not before:
                self._tasks.start("coordinator_loss", self._handle_end(started))
        if instance is not before:
            self._scheduler.wanted = None
            self._scheduler.record_load(instance.model, instance.timings.load_s or 0)
            self._tasks.keep_running("coordinator_idle", partial(self._unload_when_idle, instance))
        return instance

    async def _handle_end(self, instance: CoordinatorInstance) -> None:
        """Wait for the end of an instance, loaded or not; if it was lost, have it loaded again."""
        await instance.ended.wait()
        try:
            if instance.died_unexpectedly and instance is self._loads.current:
                log("coordinator_lost", start=instance.id, failure=instance.failure)
                self._loads.settings = instance.request
                self._scheduler.wanted = instance.model if instance.for_requests else None
                self._recovery.record_death(instance)
        finally:
            self._dispatch()

    async def _unload_when_idle(self, instance: CoordinatorInstance) -> None:
        idle_s = self._config.idle_unload_s
        while idle_s and instance.running:
            await instance.idle_or_ended()
            if (left_s := idle_s - instance.quiet_s) > 0:
                await instance.ended_within(left_s)
                continue
            async with self._changes.lease:
                if instance is not self._loads.ready:
                    return  # whoever stops it had the lease before
                if not instance.state.requests_in_flight and instance.quiet_s >= idle_s:
                    await self._loads.stop(f"idle for {idle_s:g} s", idle_s=0)


def _uses(instance: CoordinatorInstance | None, nodes: Sequence[str]) -> bool:
    return instance is not None and any(share.node in nodes for share in instance.plan.shares)


def _stopping() -> RouterError:
    return RouterError(503, "stopping", _STOPPING, retry_after_s=10)
