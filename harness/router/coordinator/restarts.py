"""How often a coordinator may be started again: back-off, budget and the history of what went wrong."""

from collections import deque

from pydantic import BaseModel, ConfigDict

from harness.contracts.diagnosis import Diagnosis
from harness.router.coordinator.queue import retry_seconds
from harness.router.errors import RouterError

_KEPT = 100
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0


class Failure(BaseModel):
    """A coordinator that ended without being asked to, or did not come to be ready."""

    model_config = ConfigDict(extra="forbid")

    time_ns: int
    start_id: str | None = None
    model: str
    failure_class: str
    message: str
    diagnosis: Diagnosis | None = None


def pause_s(failures_in_a_row: int) -> float:
    """How long to wait before the next start: nothing after the first failure, then 1, 2, 4 ... 30 s."""
    if failures_in_a_row < 2:
        return 0.0
    return min(_FIRST_PAUSE_S * 2.0 ** (failures_in_a_row - 2), _LONGEST_PAUSE_S)


class RestartBudget:
    """Counts failures within a window of time.

    Args:
        limit: failures within the window after which nothing is started any more.
        window_s: how long a failure counts, in seconds.
    """

    def __init__(self, limit: int, window_s: float) -> None:
        self._limit = limit
        self._window_ns = int(window_s * 1e9)
        self._history: deque[Failure] = deque(maxlen=_KEPT)
        self._in_a_row = 0
        self._counted_from_ns = 0

    @property
    def history(self) -> list[Failure]:
        """The last failures, oldest first."""
        return list(self._history)

    @property
    def in_a_row(self) -> int:
        """Failures since the last answer."""
        return self._in_a_row

    def failed(self, failure: Failure) -> None:
        """Count one more failure."""
        self._history.append(failure)
        self._in_a_row += 1

    def succeeded(self) -> None:
        """An answer was given: the next failure is the first of its row again."""
        self._in_a_row = 0

    def forgive(self, now_ns: int) -> None:
        """Count nothing from before: somebody has seen to it and asks for a load."""
        self._in_a_row = 0
        self._counted_from_ns = now_ns

    def check(self, now_ns: int) -> None:
        """Refuse another start once the budget is spent.

        Raises:
            RouterError: 503 with the last diagnosis and the time at which a start is free again.
        """
        since = max(now_ns - self._window_ns, self._counted_from_ns)
        recent = [failure for failure in self._history if failure.time_ns > since]
        if len(recent) < self._limit:
            return
        last, window_s = recent[-1], self._window_ns / 1e9
        advice = last.diagnosis.advice if last.diagnosis else last.message
        raise RouterError(
            503,
            "restart_budget_spent",
            f"the coordinator failed {len(recent)} times within {window_s:g} s, "
            f"last with {last.failure_class}: {advice}",
            diagnosis=last.diagnosis,
            retry_after_s=retry_seconds((recent[-self._limit].time_ns + self._window_ns - now_ns) / 1e9),
        )
