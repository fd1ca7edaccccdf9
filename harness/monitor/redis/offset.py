"""How far this node's clock is from the head node's, from questions for Redis's TIME."""

from dataclasses import dataclass

KEPT_FOR_S = 60.0
"""A reading that is older says nothing any more: a clock drifts, and may be set."""


@dataclass(frozen=True)
class Reading:
    """One answer of the head node's clock, seconds."""

    offset_s: float
    """This node's clock minus the head node's."""
    error_s: float
    """The true offset is no further away than this: half of the round trip."""
    at_s: float
    """When it was taken, on this node's monotonic clock."""


def reading(before_ns: int, head_ns: int, after_ns: int, at_s: float) -> Reading:
    """What one question tells: the answer was given some time between the two looks at our own clock.

    Cristian's algorithm (1989): the middle of the round trip is the estimate, half of it the error.

    Args:
        before_ns: our clock when the question was sent, UTC nanoseconds.
        head_ns: the head node's clock in the answer.
        after_ns: our clock when the answer came.
        at_s: our monotonic clock when the answer came.
    """
    middle_ns = (before_ns + after_ns) / 2
    return Reading((middle_ns - head_ns) / 1e9, (after_ns - before_ns) / 2e9, at_s)


def better(kept: Reading | None, new: Reading) -> Reading:
    """The reading to go on with: the sharper of two that can both be true, else the new one."""
    if kept is None or new.at_s - kept.at_s > KEPT_FOR_S or new.error_s <= kept.error_s:
        return new
    agree = abs(kept.offset_s - new.offset_s) <= kept.error_s + new.error_s
    return kept if agree else new


def offset_now(kept: Reading | None, now_s: float) -> float | None:
    """The offset in seconds as far as it is known; None once the reading is too old.

    Args:
        now_s: this node's monotonic clock.
    """
    if kept is None or now_s - kept.at_s > KEPT_FOR_S:
        return None
    return round(kept.offset_s, 6)
