"""What a coordinator does next: events in, actions out. Pure: no clock, no I/O, no task.

Events are method calls: ``enqueue``, ``leave``, ``refuse``, ``hold``, ``resume``. After each of them, and
after each change of the slot, ``next_actions`` gives what has to be done. One scheduler serves one
coordinator.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel

from harness.router.errors import RouterError

_LONGEST_RETRY_S = 3600
_RECENT = 0.2
"""Weight of the newest answer in the average duration of an answer."""


class QueueEntry(BaseModel):
    """One waiting request, as ``GET /admin/queue`` shows it."""

    position: int
    """1 is next."""
    model: str
    age_s: float


@dataclass(eq=False, frozen=True)
class Ticket:
    """One request in the queue."""

    model: str
    position: int
    """Its position when it came; 1 is next."""
    since_s: float
    """When it came, seconds of the monotonic clock."""


@dataclass(frozen=True)
class Slot:
    """What the coordinator is doing now, as far as it matters for the queue."""

    serving: str | None = None
    """The model that is ready to answer."""
    in_flight: int = 0
    capacity: int = 1
    """Requests that may be in flight at once."""
    served_s: float = 0
    """How long ``serving`` has had its turn."""
    turn_s: float = 0
    """A turn's length while others wait; a model without requests gives it up at once."""
    ending: bool = False
    """The process is gone and why is not known yet: nothing is decided before that."""


@dataclass(frozen=True)
class GrantRequest:
    """Give this request the coordinator."""

    ticket: Ticket


@dataclass(frozen=True)
class LoadModel:
    """Load this model once the requests in flight have ended; what runs is stopped first."""

    model: str


@dataclass(frozen=True)
class WakeUp:
    """Ask again after so many seconds."""

    seconds: float


Action = GrantRequest | LoadModel | WakeUp


def next_action(waiting: Sequence[Ticket], slot: Slot) -> Action | None:
    """What to do next for the requests that wait, oldest first; None before something changes.

    The oldest request decides. While it is for the model that is served, requests are sent in their order. If
    it is for another one, the served model keeps its turn as long as it has requests and ``turn_s`` has not
    passed; after that no request for it is sent until the oldest one has had its model. So no request
    starves, and the model is not switched with every request.
    """
    if not waiting:
        return None
    oldest = waiting[0].model
    turn_over = slot.serving != oldest and slot.served_s >= slot.turn_s
    served = next((ticket for ticket in waiting if ticket.model == slot.serving), None)
    if slot.serving is None or turn_over or (served is None and slot.in_flight == 0):
        return LoadModel(oldest)
    if served and slot.in_flight < slot.capacity:
        return GrantRequest(served)
    return None if slot.serving == oldest else WakeUp(slot.turn_s - slot.served_s)


class Scheduler:
    """The queue of one coordinator with its hold, and the durations from which waits are estimated."""

    def __init__(self, queue_limit: int) -> None:
        self._limit = queue_limit
        self._tickets: list[Ticket] = []
        self.wanted: str | None = None
        """A model that was lost: loaded again although no request waits for it."""
        self._held_until_s: float | None = None
        self._answer_s: float | None = None
        self._load_s: dict[str, float] = {}

    def entries(self, now_s: float) -> list[QueueEntry]:
        return [
            QueueEntry(position=position, model=ticket.model, age_s=round(now_s - ticket.since_s, 3))
            for position, ticket in enumerate(self._tickets, 1)
        ]

    def enqueue(self, model: str, serving: str | None, now_s: float) -> Ticket:
        """Put a request at the end of the queue.

        Raises:
            RouterError: the queue is full (503, with the time after which there should be room).
        """
        if len(self._tickets) >= self._limit:
            raise RouterError(
                503,
                "queue_full",
                f"{len(self._tickets)} requests wait for the coordinator already, the oldest for "
                f"{now_s - self._tickets[0].since_s:.0f} s; ask again later",
                retry_after_s=self.retry_after_s(serving, ahead=1),
            )
        ticket = Ticket(model, len(self._tickets) + 1, now_s)
        self._tickets.append(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Remove a request that has ended or whose client has left, if it is still in the queue."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)

    def refuse(self, model: str | None = None) -> list[Ticket]:
        """Take out the requests for ``model``, or all: they will not be served."""
        refused = [ticket for ticket in self._tickets if model in (None, ticket.model)]
        self._tickets = [ticket for ticket in self._tickets if ticket not in refused]
        return refused

    def hold(self, until_s: float) -> None:
        """Grant and load nothing before ``until_s``."""
        self._held_until_s = until_s

    def resume(self) -> bool:
        """End the hold; whether there was one."""
        was_held, self._held_until_s = self._held_until_s is not None, None
        return was_held

    def held_s(self, now_s: float) -> float:
        """Seconds for which requests are still held; 0 where they are not."""
        return 0.0 if self._held_until_s is None else max(0.0, self._held_until_s - now_s)

    def hold_expired(self, now_s: float) -> bool:
        """Whether a hold has reached its deadline without ``resume``."""
        return self._held_until_s is not None and now_s >= self._held_until_s

    def next_actions(self, slot: Slot, now_s: float) -> list[Action]:
        """What to do now, in order. Requests that are granted have left the queue."""
        if slot.ending:
            return []
        if left_s := self.held_s(now_s):
            return [WakeUp(left_s)]
        actions: list[Action] = []
        while isinstance(action := self._next(slot), GrantRequest):
            actions.append(action)
            self._tickets.remove(action.ticket)
            slot = replace(slot, in_flight=slot.in_flight + 1)
        return [*actions, action] if action else actions

    def model_to_load(self, slot: Slot, now_s: float) -> str | None:
        """The model to load now; None where another event has made the load needless."""
        if slot.ending or self.held_s(now_s):
            return None
        action = self._next(slot)
        return action.model if isinstance(action, LoadModel) else None

    def _next(self, slot: Slot) -> Action | None:
        if slot.serving is None and not self._tickets and self.wanted:
            return LoadModel(self.wanted)
        return next_action(self._tickets, slot)

    def record_load(self, model: str, seconds: float) -> None:
        self._load_s[model] = seconds

    def load_s(self, model: str) -> float:
        """How long the model's last load took; the longest known where it was never loaded."""
        return self._load_s.get(model, max(self._load_s.values(), default=0.0))

    def record_answer(self, seconds: float) -> None:
        average_s = seconds if self._answer_s is None else self._answer_s
        self._answer_s = (1 - _RECENT) * average_s + _RECENT * seconds

    def retry_after_s(self, serving: str | None, ahead: int | None = None) -> int:
        """Seconds until the first ``ahead`` requests, or all, should have been answered."""
        models = [ticket.model for ticket in self._tickets[:ahead]]
        load_s = {model: self.load_s(model) for model in models}
        return retry_seconds(expected_wait_s(models, serving, answer_s=self._answer_s or 1.0, load_s=load_s))


def expected_wait_s(
    models: Sequence[str], serving: str | None, *, answer_s: float, load_s: Mapping[str, float]
) -> float:
    """How long it takes until these requests have been answered.

    Args:
        models: model of each request, oldest first.
        serving: the model that is loaded.
        answer_s: how long one request uses the coordinator.
        load_s: how long each model takes to load; added at each switch of model.
    """
    total = 0.0
    for model in models:
        total += answer_s + (load_s.get(model, 0.0) if model != serving else 0.0)
        serving = model
    return total


def retry_seconds(wait_s: float) -> int:
    """A ``Retry-After``: whole seconds, at least one and at most an hour."""
    return max(1, min(math.ceil(wait_s), _LONGEST_RETRY_S))
