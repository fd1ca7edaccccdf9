"""Readers of a node's figures, and what they share: the kernel's files, and rates of counters."""

from pathlib import Path

PROC = Path("/proc")
SYS = Path("/sys")


def read_text(path: Path) -> str | None:
    """The text of a file; None where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


class Rate:
    """How fast a counter grows, from one reading to the next."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None

    def __call__(self, now_s: float, counter: int) -> float | None:
        """Growth per second since the last reading; None in the first, and after the counter was reset.

        Args:
            now_s: monotonic clock, seconds.
            counter: its value now.
        """
        last, self._last = self._last, (now_s, counter)
        if last is None or now_s <= last[0] or counter < last[1]:
            return None
        return round((counter - last[1]) / (now_s - last[0]), 1)
