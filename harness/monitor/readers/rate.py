"""Rates from counters."""


class Rate:
    """How fast a counter grows, from one look to the next."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None

    def __call__(self, now_s: float, counter: int) -> float | None:
        """Growth per second since the last look; None in the first, and after the counter began anew.

        Args:
            now_s: monotonic clock, seconds.
            counter: its value now.
        """
        last, self._last = self._last, (now_s, counter)
        if last is None or now_s <= last[0] or counter < last[1]:
            return None
        return round((counter - last[1]) / (now_s - last[0]), 1)
