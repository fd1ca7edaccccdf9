"""The last ten minutes of samples in memory, for Redis: what it has missed is sent from here."""

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from threading import Condition

from harness.monitor.ring import KEEP_LINES


@dataclass(frozen=True)
class Entry:
    """One sample as its line of JSON."""

    time_ns: int
    line: str

    @property
    def ms(self) -> int:
        """Its time in milliseconds: what orders a stream."""
        return self.time_ns // 1_000_000


class Backlog:
    """Filled by the thread that samples, read by the one that publishes. Bounded, and always in order."""

    def __init__(self, keep: int = KEEP_LINES) -> None:
        self._entries: deque[Entry] = deque(maxlen=keep)
        self._changed = Condition()

    def add(self, entry: Entry) -> None:
        """Append the newest sample; never waits for the network or a disk."""
        with self._changed:
            self._append(entry)
            self._changed.notify_all()

    def begin_with(self, lines: Iterable[str]) -> None:
        """Put samples of an earlier life, oldest first, before what was added since."""
        earlier = [Entry(json.loads(line)["time_ns"], line) for line in lines]
        with self._changed:
            since = list(self._entries)
            self._entries.clear()
            for entry in [*earlier, *since]:
                self._append(entry)

    def after(self, ms: int, most: int) -> list[Entry]:
        """Samples later than ``ms``, oldest first, at most ``most`` of them."""
        with self._changed:
            return list(islice((entry for entry in self._entries if entry.ms > ms), most))

    def newest(self) -> Entry | None:
        """The sample added last."""
        with self._changed:
            return self._entries[-1] if self._entries else None

    def wait_for_other_than(self, entry: Entry | None, timeout_s: float) -> None:
        """Wait until the newest sample is another one, or time is up, or somebody calls ``wake``."""
        with self._changed:
            if (self._entries[-1] if self._entries else None) == entry:
                self._changed.wait(timeout_s)

    def wake(self) -> None:
        """End a wait."""
        with self._changed:
            self._changed.notify_all()

    def _append(self, entry: Entry) -> None:
        # A clock that was set back: what it dated in its own future cannot come before this one.
        while self._entries and self._entries[-1].ms >= entry.ms:
            self._entries.pop()
        self._entries.append(entry)
