"""The requests that wait for the coordinator: bounded, in order, each with a visible place and age."""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from harness.router.coordinator.start import Start
from harness.router.errors import RouterError

_LONGEST_RETRY_S = 3600
_RECENT = 0.2
"""Weight of the newest answer in the average of how long one takes."""


class QueueEntry(BaseModel):
    """One waiting request, as ``GET /admin/queue`` shows it."""

    model_config = ConfigDict(extra="forbid")

    position: int
    """1 is next."""
    model: str
    age_s: float


@dataclass(eq=False)
class Ticket:
    """A request's place in the queue."""

    model: str
    granted: asyncio.Future[Start]
    position: int
    """Where it stood when it came."""
    since: float = field(default_factory=time.monotonic)


class RequestQueue:
    """Requests in the order of their coming; and how long those before them took."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tickets: list[Ticket] = []
        self._answer_s: float | None = None
        self._load_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def models(self) -> list[str]:
        """Model of each waiting request, oldest first."""
        return [ticket.model for ticket in self._tickets]

    def view(self) -> list[QueueEntry]:
        """Everybody who waits, next first."""
        now = time.monotonic()
        return [
            QueueEntry(position=place, model=ticket.model, age_s=round(now - ticket.since, 3))
            for place, ticket in enumerate(self._tickets, 1)
        ]

    def enter(self, model: str, serving: str | None) -> Ticket:
        """A place at the end.

        Raises:
            RouterError: the queue is full (503, with the time after which a place should be free).
        """
        if len(self._tickets) >= self._limit:
            raise RouterError(
                503,
                "queue_full",
                f"{len(self._tickets)} requests wait for the coordinator already, the oldest for "
                f"{self.view()[0].age_s:.0f} s; ask again later",
                retry_after_s=self.retry_after_s(serving, ahead=1),
            )
        ticket = Ticket(model, asyncio.get_running_loop().create_future(), len(self._tickets) + 1)
        self._tickets.append(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give up a place, whether it was granted or not."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)

    def grant(self, index: int, start: Start) -> None:
        """Let the request at ``index`` have the coordinator."""
        start.take()
        self._tickets.pop(index).granted.set_result(start)

    def fail(self, error: RouterError, model: str | None = None) -> None:
        """Tell everybody who waits for ``model``, or for any, that it will not come to be."""
        for ticket in [t for t in self._tickets if model in (None, t.model)]:
            self._tickets.remove(ticket)
            ticket.granted.set_exception(error)
            ticket.granted.exception()  # seen: whoever waited may have left

    def loaded(self, model: str, seconds: float) -> None:
        """Remember how long a load took."""
        self._load_s[model] = seconds

    def load_s(self, model: str) -> float:
        """How long the model's last load took; the longest known where it has never been loaded."""
        return self._load_s.get(model, max(self._load_s.values(), default=0.0))

    def answered(self, seconds: float) -> None:
        """Remember how long one request had the coordinator."""
        before = seconds if self._answer_s is None else self._answer_s
        self._answer_s = (1 - _RECENT) * before + _RECENT * seconds

    def retry_after_s(self, serving: str | None, ahead: int | None = None) -> int:
        """Seconds after which asking again is worth it; see ``expected_wait_s``."""
        models = self.models if ahead is None else self.models[:ahead]
        wait = expected_wait_s(
            models, serving, answer_s=self._answer_s or 1.0, load_s={m: self.load_s(m) for m in models}
        )
        return retry_seconds(wait)


def expected_wait_s(
    models: list[str], serving: str | None, *, answer_s: float, load_s: Mapping[str, float]
) -> float:
    """How long it takes until these requests have had their turn.

    Args:
        models: model of each request before, oldest first.
        serving: the model that is loaded.
        answer_s: how long one request has the coordinator.
        load_s: how long each model takes to load; added at each change of model.
    """
    total = 0.0
    for model in models:
        total += answer_s + (load_s.get(model, 0.0) if model != serving else 0.0)
        serving = model
    return total


def retry_seconds(wait_s: float) -> int:
    """A ``Retry-After``: whole seconds, at least one and at most an hour."""
    return max(1, min(math.ceil(wait_s), _LONGEST_RETRY_S))
