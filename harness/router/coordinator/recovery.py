"""How a model comes back after its coordinator was lost: pause, look at the backends, plan again, start."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from harness.contracts.diagnosis import FailureClass
from harness.contracts.load_request import LoadRequest
from harness.contracts.plan import Plan
from harness.router.config import Backend, RouterConfig
from harness.router.coordinator.restarts import Failure, RestartBudget, pause_s
from harness.router.coordinator.start import Start
from harness.router.coordinator.steps import Steps
from harness.router.errors import RouterError
from harness.router.http.metrics import Metrics
from harness.router.nodes.probe import BackendWatch
from harness.router.nodes.sockets import connected
from harness.router.nodes.stale_connections import Forgotten

T = TypeVar("T")

Loader = Callable[[LoadRequest], Awaitable[Start]]

_ANOTHER_TRY = frozenset(
    {
        FailureClass.BACKEND_LOST,
        FailureClass.BACKEND_UNREACHABLE,
        FailureClass.BACKEND_STALLED,
        FailureClass.SEGFAULT,
        FailureClass.SIGPIPE,
        FailureClass.UNKNOWN,
    }
)
"""Failures of a load after which another start may go better; the others would only fail again."""


_CALLED_OFF = 409
"""Status of a load that was ended because somebody asked us for it."""


class Recovery:
    """Loads for requests, through failures, as far as the budget of restarts allows."""

    def __init__(
        self,
        config: RouterConfig,
        backends: BackendWatch,
        forgotten: Forgotten,
        steps: Steps,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._backends = backends
        self._forgotten = forgotten
        self._steps = steps
        self._metrics = metrics
        self.budget = RestartBudget(config.restart_budget, config.restart_window_s)
        self._pausing: asyncio.Future[str] | None = None

    def failed(self, start: Start) -> None:
        """A coordinator ended while it was lent."""
        self._count(
            Failure(
                time_ns=time.time_ns(),
                start_id=start.id,
                model=start.plan.model,
                failure_class=start.failure,
                message="it ended while it served",
                diagnosis=start.state.diagnosis,
            )
        )

    def interrupt(self, why: str) -> bool:
        """Give up a recovery that waits for something; whether there was one."""
        if self._pausing is None or self._pausing.done():
            return False
        self._pausing.set_result(why)
        return True

    async def load(self, request: LoadRequest, load: Loader) -> Start:
        """Load with the backends that are there; again after a failure that another start may mend.

        Raises:
            RouterError: the budget is spent (503), backends are missing and the model does not fit without
                them (503), somebody asked for an end (409), or a failure that would only come again.
        """
        while True:
            self.budget.check(time.time_ns())
            await self._pause(asyncio.sleep(pause_s(self.budget.in_a_row)))
            absent = await self._pause(self._absent(request))
            if self.budget.in_a_row:
                self._metrics.coordinator_restarted(self.budget.history[-1].diagnosis)
            possible = self._without(request, absent)
            try:
                return await load(possible)
            except RouterError as error:
                if absent and error.error_class == "does_not_fit":
                    raise self._missing(absent, f"without them: {error.message}") from None
                if not _may_go_better(error):
                    raise
                self._count(
                    Failure(
                        time_ns=time.time_ns(),
                        start_id=error.state.start_id if error.state else None,
                        model=request.model,
                        failure_class=error.error_class,
                        message=error.message,
                        diagnosis=error.diagnosis,
                    )
                )

    def _count(self, failure: Failure) -> None:
        self.budget.failed(failure)
        self._steps("failure", **failure.model_dump(exclude={"time_ns"}, mode="json"))

    async def _absent(self, request: LoadRequest) -> dict[str, str]:
        wanted = request.nodes or [backend.node for backend in self._config.backends]
        backends = [backend for backend in self._config.backends if backend.node in wanted]
        self._leased(backends)
        absent = await self._forgotten.among(backends)
        others = [backend for backend in backends if backend.node not in absent]
        absent |= await self._backends.absent(others, self._config.backend_wait_s)
        self._steps("backends", model=request.model, absent=absent)
        return absent

    async def check(self, plan: Plan) -> None:
        """Refuse a load that would wait behind a connection which nobody has any more.

        Raises:
            RouterError: a backend of the plan serves one (503).
        """
        planned = {share.node for share in plan.shares if share.layers}
        backends = [backend for backend in self._config.backends if backend.node in planned]
        if found := await self._forgotten.among(backends):
            raise self._missing(found, "then load again")

    def _leased(self, backends: list[Backend]) -> None:
        """Refuse backends that something else on this machine is connected to.

        Raises:
            RouterError: they are in use (503).
        """
        if used := connected([backend.endpoint for backend in backends]):
            raise RouterError(
                503,
                "backends_leased",
                f"another program of this machine is connected to {', '.join(used)}; "
                "find it with 'ss -Htnp' and stop it",
                retry_after_s=round(self._config.backend_wait_s) or 1,
            )

    def _without(self, request: LoadRequest, absent: dict[str, str]) -> LoadRequest:
        """The same load on the backends that are there; a plan that was given goes with the others."""
        if not absent:
            return request
        wanted = request.nodes or [backend.node for backend in self._config.backends]
        present = [node for node in wanted if node not in absent]
        if not present:
            raise self._missing(absent, "there is no other backend")
        self._steps("planned again", model=request.model, nodes=present)
        return request.model_copy(update={"nodes": present, "plan": None})

    def _missing(self, absent: dict[str, str], rest: str) -> RouterError:
        return RouterError(
            503,
            str(FailureClass.BACKEND_UNREACHABLE),
            f"backends do not answer: {'; '.join(absent.values())}; {rest}",
            retry_after_s=round(self._config.backend_wait_s) or 1,
        )

    async def _pause(self, work: Awaitable[T]) -> T:
        """Wait for ``work``, unless somebody asks for an end first."""
        task = asyncio.ensure_future(work)
        self._pausing = asyncio.get_running_loop().create_future()
        try:
            both: set[asyncio.Future[Any]] = {task, self._pausing}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise RouterError(409, str(FailureClass.STOPPED), self._pausing.result())
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._pausing.cancel()
            self._pausing = None


def _may_go_better(error: RouterError) -> bool:
    """Whether another start is worth it; a stop that was not asked of us was meant for that process alone."""
    by_others = error.status != _CALLED_OFF and error.error_class in (
        FailureClass.STOPPED,
        FailureClass.STOPPED_BUSY,
    )
    return by_others or error.error_class in _ANOTHER_TRY
