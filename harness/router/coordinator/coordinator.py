"""The coordinator: one llama-server at a time over the backends, lent to one request after the other."""

import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp

from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.diagnosis import FailureClass
from harness.contracts.load_request import LoadRequest
from harness.router.background import Background
from harness.router.config import RouterConfig
from harness.router.coordinator.desk import Desk
from harness.router.coordinator.liveness import Watcher
from harness.router.coordinator.loan import Loan
from harness.router.coordinator.queue import QueueEntry
from harness.router.coordinator.readiness import wait_ended
from harness.router.coordinator.recovery import Recovery
from harness.router.coordinator.restarts import Failure
from harness.router.coordinator.server import STOPPING, CoordinatorServer
from harness.router.coordinator.start import Start
from harness.router.coordinator.steps import Steps
from harness.router.coordinator.witness import Witness
from harness.router.errors import RouterError
from harness.router.http.metrics import Metrics
from harness.router.logs import log
from harness.router.models.catalogue import Catalogue
from harness.router.models.planner import Planner
from harness.router.nodes.probe import BackendWatch
from harness.router.nodes.samples import NodeSamples
from harness.router.nodes.stale_connections import Forgotten

_DIAGNOSIS_WAIT_S = 5


class Coordinator:
    """Has the server loaded, changed, stopped and recovered, for administrators and for the desk."""

    def __init__(
        self,
        config: RouterConfig,
        catalogue: Catalogue,
        session: aiohttp.ClientSession,
        metrics: Metrics,
        nodes: NodeSamples,
    ) -> None:
        self._config = config
        self._asked: dict[str, LoadRequest] = {}
        self.url = f"http://127.0.0.1:{config.coordinator_port}"
        self._steps, self._background = Steps(config), Background()
        backends, forgotten = BackendWatch(nodes), Forgotten(nodes, config.address)
        self.planner = Planner(config, catalogue, backends.samples)
        self._recovery = Recovery(config, backends, forgotten, self._steps, metrics)
        self._server = CoordinatorServer(
            config,
            session,
            self.url,
            planner=self.planner,
            watcher=Watcher(config, session, self.url, backends, self._steps),
            witness=Witness(config, nodes),
            metrics=metrics,
            check=self._recovery.check,
            on_end=self._ended,
        )
        self._desk = Desk(
            config,
            self._server,
            self._steps,
            self._background,
            load=self._load_for_requests,
            answered=self._recovery.budget.succeeded,
        )
        self._closing = False

    @property
    def state(self) -> CoordinatorState:
        """Of the current start, or of the last one."""
        return self._server.state

    @property
    def loaded(self) -> str | None:
        """The model that is ready to answer; None while there is none."""
        return self._server.serving

    @property
    def starts(self) -> list[CoordinatorState]:
        """The last starts, oldest first."""
        return [start.state for start in self._server.starts]

    @property
    def closing(self) -> bool:
        """Whether the router is stopping: nothing is started any more."""
        return self._closing

    @property
    def queue(self) -> list[QueueEntry]:
        """The requests that wait, next first."""
        return self._desk.queue.view()

    @property
    def failures(self) -> list[Failure]:
        """What went wrong with the last coordinators, oldest first."""
        return self._recovery.budget.history

    def log_path(self, start_id: str) -> Path | None:
        """Log of one of the last starts."""
        return next((start.log_path for start in self._server.starts if start.id == start_id), None)

    async def load(self, request: LoadRequest) -> CoordinatorState:
        """Make the model ready as asked; another one is unloaded first.

        Raises:
            RouterError: it cannot be planned, did not load in time, ended, or was not distributed.
        """
        self._recovery.budget.forgive(time.time_ns())
        try:
            async with self._server.lease:
                start = await self._load(request, drain_s=self._config.drain_s)
                self._asked[start.plan.model] = request.model_copy(update={"cold": False, "deadline_s": None})
                return start.state
        finally:
            self._desk.pump()

    async def unload(self, *, signal: str, deadline_s: float) -> CoordinatorState:
        """Stop the coordinator: when idle, or busy once ``deadline_s`` has passed. Ends a load too."""
        start = self._abort_load("unloaded while it was loading")
        try:
            async with self._server.lease:
                self._desk.lost = None
                if start is None and self._server.current and self._server.current.running:
                    start = self._server.current
                    await self._server.stop("unload asked for", signal=signal, idle_s=deadline_s)
                return start.state if start else CoordinatorState(phase=CoordinatorPhase.ABSENT)
        finally:
            self._desk.pump()

    async def hold(self, *, deadline_s: float, drain_s: float) -> CoordinatorState:
        """Let requests wait, finish those in flight, stop the coordinator: the backends may then be changed.

        Loads that an administrator asks for are not held. It ends with ``resume``, or after ``deadline_s``.

        Args:
            deadline_s: how long requests wait at most.
            drain_s: how long answers in flight may take before the coordinator is stopped all the same.
        """
        self._desk.hold.begin(deadline_s)
        log("requests are held", deadline_s=deadline_s)
        async with self._server.lease:
            await self._server.stop("held for a change of backends", idle_s=drain_s)
            return self.state

    def resume(self) -> None:
        """End the hold; requests that waited go on."""
        self._desk.hold.end()

    @property
    def held_s(self) -> float:
        """For how long requests are held yet; 0 where they are not."""
        return self._desk.hold.left_s

    def lend(self, model: str) -> AbstractAsyncContextManager[Loan]:
        """A ready coordinator for one request; loads the model if need be, once for all who wait.

        Raises:
            RouterError: the queue is full, the wait was too long, or the load failed.
        """
        return self._desk.lend(model)

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
        self._desk.close()
        await self._server.close()
        await self._background.finished()

    def refuse(self) -> None:
        """The router is about to stop: refuse who waits and who comes, start nothing.

        Who is being answered has ``drain_s``; after that the coordinator is stopped all the same, and they
        get the error that says so.
        """
        if self._closing:
            return
        self._closing = True
        self._server.refuse()
        self._desk.refuse()
        self._background.start(self._stop_for_good())

    async def _stop_for_good(self) -> None:
        self._abort_load(STOPPING)
        async with self._server.lease:
            await self._server.stop(STOPPING, idle_s=self._config.drain_s)

    def _retry_after_s(self, start: Start) -> int:
        return max(1, round(self._desk.queue.load_s(start.plan.model)))

    def _abort_load(self, why: str) -> Start | None:
        self._recovery.interrupt(why)
        return self._server.abort_load(why)

    async def _load_for_requests(self, model: str) -> None:
        await self._server.stop(f"{model} is to be loaded", idle_s=self._config.switch_drain_s)
        asked = self._asked.get(model) or LoadRequest(model=model)

        async def load(request: LoadRequest) -> Start:
            return await self._load(request, for_requests=True)

        await self._recovery.load(asked, load)

    async def _load(self, request: LoadRequest, *, drain_s: float = 0, for_requests: bool = False) -> Start:
        before = self._server.current
        start = await self._server.load(request, drain_s=drain_s, for_requests=for_requests)
        if start is not before:
            self._desk.lost = None
            self._desk.queue.loaded(start.plan.model, start.timings.load_s or 0)
            self._background.start(self._look_after(start, for_requests))
        return start

    async def _look_after(self, start: Start, for_requests: bool) -> None:
        await self._server.look_after(start)
        if start.unasked and for_requests and start is self._server.current:
            self._desk.lost = start.plan.model
            self._desk.pump()

    def _ended(self, start: Start) -> None:
        if start.unasked:
            log("coordinator lost", start=start.id, failure=start.failure)
            self._recovery.failed(start)
        self._desk.pump()
