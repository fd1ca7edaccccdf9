"""Loads for requests, through failures: back-off, a restart budget, and backends that may be missing."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.common.sockets import connected_endpoints
from harness.contracts.diagnosis import FailureClass
from harness.contracts.plan import LoadRequest, Plan
from harness.router.config import Backend, RouterConfig
from harness.router.coordinator.instance import CoordinatorInstance
from harness.router.coordinator.scheduler import retry_seconds
from harness.router.errors import RouterError
from harness.router.failures import Failure, Failures
from harness.router.http.metrics import Metrics
from harness.router.json_log import log_debug
from harness.router.nodes.backends import BackendWatch, StaleConnections

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_RETRIED = frozenset(
    {
        FailureClass.BACKEND_LOST,
        FailureClass.BACKEND_UNREACHABLE,
        FailureClass.BACKEND_STALLED,
        FailureClass.NETWORK_PARTITION,
        FailureClass.SEGFAULT,
        FailureClass.SIGPIPE,
        FailureClass.STOPPED,
        FailureClass.STOPPED_BUSY,
        FailureClass.UNKNOWN,
    }
)
"""Failures of a load after which another start may succeed; the others would only come again.

A stop by another program meant that process alone.
"""


def pause_s(failures_in_a_row: int) -> float:
    """How long to wait before the next start: nothing after the first failure, then 1, 2, 4 ... 30 s."""
    if failures_in_a_row < 2:
        return 0.0
    return min(_FIRST_PAUSE_S * 2.0 ** (failures_in_a_row - 2), _LONGEST_PAUSE_S)


class RestartBudget:
    """Counts failures within a window of time. Times are on the monotonic clock.

    Args:
        limit: failures within the window after which nothing is started any more.
        window_s: how long a failure counts, in seconds.
    """

    def __init__(self, limit: int, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._counted: deque[tuple[float, Failure]] = deque(maxlen=limit)
        self.last: Failure | None = None
        """The last failure, counted or not."""
        self.in_a_row = 0
        """Failures since the last answer."""

    def record_failure(self, failure: Failure, now_s: float) -> None:
        self.last = failure
        self._counted.append((now_s, failure))
        self.in_a_row += 1
        log_debug(
            "failure_counted", **failure.model_dump(exclude={"time_ns"}, exclude_none=True, mode="json")
        )

    def record_answer(self) -> None:
        """A request was answered: the next failure is the first of its row again."""
        self.in_a_row = 0

    def reset(self) -> None:
        """Forget all failures: an administrator asks for a load."""
        self.in_a_row = 0
        self._counted.clear()

    def check(self, now_s: float) -> None:
        """Refuse another start once the budget is spent.

        Raises:
            RouterError: 503 with the last diagnosis and the time after which a start is possible again.
        """
        recent = [entry for entry in self._counted if now_s - entry[0] < self._window_s]
        if len(recent) < self._limit:
            return
        last = recent[-1][1]
        advice = last.diagnosis.advice if last.diagnosis else last.message
        raise RouterError(
            503,
            "restart_budget_spent",
            f"the coordinator failed {len(recent)} times within {self._window_s:g} s, "
            f"last with {last.failure_class}: {advice}",
            diagnosis=last.diagnosis,
            retry_after_s=retry_seconds(recent[0][0] + self._window_s - now_s),
        )


@dataclass(frozen=True)
class Attempt:
    """One try of a load, on the backends that answer."""

    request: LoadRequest
    missing: dict[str, str] = field(default_factory=dict)
    """By node, what was seen of a backend that does not answer."""


class Recovery:
    """Prepares each attempt of a load for requests, and says whether a failure is worth another one."""

    def __init__(
        self,
        config: RouterConfig,
        backends: BackendWatch,
        stale: StaleConnections,
        metrics: Metrics,
        failures: Failures,
    ) -> None:
        self._config = config
        self._backends = backends
        self._stale = stale
        self._metrics = metrics
        self._retry_after_s = round(config.backend_wait_s) or 1
        self.failures = failures
        self.budget = RestartBudget(config.restart_budget, config.restart_window_s)

    async def prepare(self, request: LoadRequest) -> Attempt:
        """Wait for the back-off and for the backends; without those that do not come back.

        Raises:
            RouterError: the budget is spent (503), or no backend answers (503).
        """
        self.budget.check(time.monotonic())
        await asyncio.sleep(pause_s(self.budget.in_a_row))
        missing = await self._missing(self._chosen(request.nodes))
        log_debug("backends_checked", model=request.model, missing=missing)
        if self.budget.in_a_row and self.budget.last:
            self._metrics.coordinator_restarted(self.budget.last.diagnosis)
        if not missing:
            return Attempt(request)
        nodes = request.nodes or [backend.node for backend in self._config.backends]
        present = [node for node in nodes if node not in missing]
        if not present:
            raise self._unreachable(missing, "there is no other backend")
        log_debug("planned_without_missing", model=request.model, nodes=present)
        return Attempt(request.model_copy(update={"nodes": present, "plan": None}), missing)

    def record_failed_load(self, attempt: Attempt, error: RouterError) -> None:
        """Count a failure that another attempt may mend.

        Raises:
            RouterError: another attempt would fail again.
        """
        if attempt.missing and error.error_class == "does_not_fit":
            raise self._unreachable(attempt.missing, f"without them: {error.message}") from None
        if error.error_class not in _RETRIED:
            raise error
        self._record(
            Failure(
                start_id=error.state.start_id if error.state else None,
                model=attempt.request.model,
                failure_class=error.error_class,
                message=error.message,
                diagnosis=error.diagnosis,
            )
        )

    def record_death(self, instance: CoordinatorInstance) -> None:
        """Count a coordinator that ended while it was ready, unless the request that ended it is known."""
        if instance.poison:
            return
        failure = Failure(
            start_id=instance.id,
            model=instance.model,
            failure_class=instance.failure,
            message="it ended while it was ready",
            diagnosis=instance.state.diagnosis,
        )
        self._record(failure, kept=instance.by_request)

    def _record(self, failure: Failure, *, kept: bool = False) -> None:
        if not kept:
            self.failures.history.append(failure)
        self.budget.record_failure(failure, time.monotonic())

    async def check_plan(self, plan: Plan) -> None:
        """Refuse a load that would wait behind a connection which the head node no longer has.

        Raises:
            RouterError: a backend of the plan serves one (503).
        """
        nodes = {share.node for share in plan.shares if share.layers}
        if stale := await self._stale.find(self._chosen(list(nodes))):
            raise self._unreachable(stale, "then load again")

    def _chosen(self, nodes: Sequence[str] | None) -> list[Backend]:
        return [backend for backend in self._config.backends if nodes is None or backend.node in nodes]

    async def _missing(self, backends: Sequence[Backend]) -> dict[str, str]:
        self._check_unused(backends)
        missing = await self._stale.find(backends)
        others = [backend for backend in backends if backend.node not in missing]
        return missing | await self._backends.absent(others, self._config.backend_wait_s)

    def _check_unused(self, backends: Sequence[Backend]) -> None:
        in_use = connected_endpoints()
        if used := [backend.endpoint for backend in backends if backend.endpoint in in_use]:
            raise RouterError(
                503,
                "backends_leased",
                f"another program of this machine is connected to {', '.join(used)}; "
                "find it with 'ss -Htnp' and stop it",
                retry_after_s=self._retry_after_s,
            )

    def _unreachable(self, missing: dict[str, str], rest: str) -> RouterError:
        return RouterError(
            503,
            str(FailureClass.BACKEND_UNREACHABLE),
            f"backends do not answer: {'; '.join(missing.values())}; {rest}",
            retry_after_s=self._retry_after_s,
        )
