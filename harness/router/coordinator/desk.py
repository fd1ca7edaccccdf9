"""The desk: requests wait here for the coordinator, and get it in their turns."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from harness.router.background import Background
from harness.router.config import RouterConfig
from harness.router.coordinator.hold import Hold
from harness.router.coordinator.loan import Loan
from harness.router.coordinator.policy import Grant, Load, Situation, next_step
from harness.router.coordinator.queue import RequestQueue, Ticket
from harness.router.coordinator.server import STOPPING, CoordinatorServer
from harness.router.coordinator.start import Start
from harness.router.coordinator.steps import Steps
from harness.router.errors import RouterError
from harness.router.logs import log

_AHEAD = 1
"""Requests that wait inside llama-server itself, so that no slot is ever without work."""


class Desk:
    """Whose turn it is, and what has to be loaded for it.

    Args:
        server: what is lent.
        load: loads a model for all who wait for it; called with the server's lease held.
        answered: called after each request whose coordinator outlived it.
    """

    def __init__(
        self,
        config: RouterConfig,
        server: CoordinatorServer,
        steps: Steps,
        background: Background,
        *,
        load: Callable[[str], Awaitable[None]],
        answered: Callable[[], None],
    ) -> None:
        self._config = config
        self._server = server
        self._steps = steps
        self._background = background
        self._load = load
        self._answered = answered
        self._loading: asyncio.Task[None] | None = None
        self._turn_over: asyncio.TimerHandle | None = None
        self._closing = False
        self.queue = RequestQueue(config.queue_limit)
        self.hold = Hold(self._let_go)
        self.lost: str | None = None
        """The model of a coordinator that was lost: loaded again though nobody waits for it."""

    @asynccontextmanager
    async def lend(self, model: str) -> AsyncIterator[Loan]:
        """A ready coordinator for one request; loads the model if need be, once for all who wait.

        Raises:
            RouterError: the queue is full, the wait was too long, or the load failed.
        """
        if self._closing:
            raise _stopping()
        ticket = self.queue.enter(model, self._server.serving)
        self.pump()
        try:
            start = await self._turn(ticket)
            began = time.monotonic()
            yield Loan(start, ticket.position, began - ticket.since)
            if not start.ended.is_set():
                self.queue.answered(time.monotonic() - began)
                self._answered()
        finally:
            self.queue.leave(ticket)
            if not ticket.granted.done():
                ticket.granted.cancel()
            elif not ticket.granted.exception():
                ticket.granted.result().give()
            self.pump()

    def pump(self) -> None:
        """Let go out what may go out, and see to it that what has to be loaded is."""
        if self._turn_over:
            self._turn_over.cancel()
            self._turn_over = None
        if self.hold.active or self._server.ending:
            return
        while isinstance(step := next_step(self._situation()), Grant):
            if self._server.current is not None:
                self.queue.grant(step.index, self._server.current)
        if isinstance(step, Load):
            if self._loading is None:
                self._loading = self._background.start(self._make_ready())
        elif step.seconds is not None:
            self._turn_over = asyncio.get_running_loop().call_later(step.seconds, self.pump)

    def refuse(self) -> None:
        """Refuse who waits and who comes: the router is about to stop."""
        self._closing = True
        self.queue.fail(_stopping())

    def close(self) -> None:
        """Wait for nobody's turn any more."""
        if self._turn_over:
            self._turn_over.cancel()

    def _let_go(self) -> None:
        log("requests go on")
        self.pump()

    async def _turn(self, ticket: Ticket) -> Start:
        await asyncio.wait({ticket.granted}, timeout=self._config.queue_wait_s)
        if not ticket.granted.done():
            raise RouterError(
                503,
                "queue_timeout",
                f"{ticket.model} had no turn within {self._config.queue_wait_s:g} s; see /admin/queue",
                retry_after_s=self.queue.retry_after_s(self._server.serving),
            )
        return ticket.granted.result()

    def _situation(self) -> Situation:
        waiting, current, serving = self.queue.models, self._server.current, self._server.serving
        if serving is None and not waiting and self.lost and not self._closing:
            waiting = [self.lost]
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

    async def _make_ready(self) -> None:
        """Load the model whose turn it is; who waits for it shares its failure."""
        model: str | None = None
        failure: RouterError | None = None
        try:
            async with self._server.lease:
                step = next_step(self._situation())
                if not isinstance(step, Load) or self.hold.active:
                    return
                model = step.model
                failure = RouterError(500, "error", f"{model}: the load broke off: see the router's journal")
                self.lost = None
                await self._load(model)
                failure = None
        except RouterError as error:
            failure = error
        finally:
            # Whatever happened: nobody may wait for ever.
            if failure:
                self._steps("given up", model=model, error=failure.message)
                self.queue.fail(failure, model)
            self._loading = None
            self.pump()


def _stopping() -> RouterError:
    return RouterError(503, "stopping", STOPPING, retry_after_s=10)
