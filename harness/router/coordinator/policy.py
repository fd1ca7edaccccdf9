"""Whose turn it is: one coordinator, requests for several models. A function of who waits and what runs."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Situation:
    """What the coordinator does now, and who waits for it."""

    waiting: Sequence[str]
    """Model of each waiting request, oldest first."""
    serving: str | None
    """Model that requests can be sent for now."""
    in_flight: int = 0
    capacity: int = 1
    """Requests that may be in flight at once."""
    served_s: float = 0
    """How long ``serving`` has had its turn."""
    turn_s: float = 0
    """A turn's length while others wait; a model that nobody asks for gives it up at once."""


@dataclass(frozen=True)
class Grant:
    """Send the waiting request at this index."""

    index: int


@dataclass(frozen=True)
class Load:
    """Make this model the one that is served, once what is in flight has ended."""

    model: str


@dataclass(frozen=True)
class Wait:
    """Nothing to do before something changes, or before so many seconds have passed."""

    seconds: float | None = None


def next_step(now: Situation) -> Grant | Load | Wait:
    """What to do next.

    The oldest request decides. While it is for the model that is served, requests go out in their order. If
    it is for another one, the served model keeps its turn as long as it has requests and ``turn_s`` is not
    over; after that no request for it is sent until the oldest one has had its model. So nobody starves, and
    a model is not changed with every request.
    """
    if not now.waiting:
        return Wait()
    oldest = now.waiting[0]
    if now.serving is None:
        return Load(oldest)
    if now.serving != oldest and now.served_s >= now.turn_s:
        return Load(oldest)
    if now.serving in now.waiting:
        if now.in_flight < now.capacity:
            return Grant(now.waiting.index(now.serving))
    elif now.in_flight == 0:
        return Load(oldest)
    return Wait(None if now.serving == oldest else now.turn_s - now.served_s)
