"""When the next sample is due: on every whole second of the wall clock, without drift."""

import math
import signal
import time


def next_tick(previous: int, now: float) -> int:
    """The whole second to sample at next.

    Seconds that passed while a sample was slow are skipped; a second is never sampled twice; after the
    clock was set back, sampling goes on from the new time.

    Args:
        previous: the second sampled last.
        now: wall clock, seconds.
    """
    following = math.floor(now) + 1
    if previous >= following and previous + 1 - now < 1.5:  # woken a moment early
        return previous + 1
    return following


def sleep_until(tick: int, stop: set[signal.Signals]) -> bool:
    """Sleep, on the monotonic clock, until the wall clock says ``tick``.

    Args:
        tick: seconds.
        stop: blocked signals that end the sleep.

    Returns:
        Whether to go on: False when one of ``stop`` arrived.
    """
    return signal.sigtimedwait(stop, max(0.0, tick - time.time())) is None
