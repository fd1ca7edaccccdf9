"""Publishes each sample to Redis, in order and once, in its own thread.

The stream itself records how far it got: after each connect, publishing resumes behind its last entry with
what is left of the last ten minutes. An entry's id is its sample's time, and Redis refuses an id that is
not newer than the last, so a sample whose answer was lost is not stored twice. The thread that samples
never waits for this one.
"""

import json
import time
from collections import deque
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from threading import Condition, Event, Thread

from redis.exceptions import RedisError

from harness.monitor.common import WARNING, MonitorError, log
from harness.monitor.redis import RedisSettings
from harness.monitor.redis.writer import ClockReading, Entry, RedisWriter
from harness.monitor.ring import KEEP_LINES, read_since

BATCH = 50
"""Samples in one transaction: 50 of some kilobytes do not block Redis for long."""
RETRY_S = 2.0
CLOCK_EVERY_S = 10.0
CLOCK_READING_VALID_S = 60.0
"""An older reading is not used: a clock drifts, and may be set."""
SET_BACK_MS = 60_000
"""A stream that ends this far in our future was written by a clock that was wrong."""
_JOIN_S = 1.0
_WAIT_S = 1.0


class Backlog:
    """The samples of the last ten minutes in memory, in order: what Redis missed is sent from here.

    The thread that samples adds, the thread that publishes reads.
    """

    def __init__(self, keep: int = KEEP_LINES) -> None:
        self._entries: deque[Entry] = deque(maxlen=keep)
        self._changed = Condition()

    def add(self, entry: Entry) -> None:
        """Append the newest sample; never waits for the network or a disk."""
        with self._changed:
            # After the clock was set back: samples dated in its future cannot come before this one.
            while self._entries and self._entries[-1].ms >= entry.ms:
                self._entries.pop()
            self._entries.append(entry)
            self._changed.notify_all()

    def prepend(self, lines: Iterable[str]) -> None:
        """Put the samples of an earlier process, oldest first, before those added since."""
        earlier = [Entry(json.loads(line)["time_ns"], line) for line in lines]
        with self._changed:
            added_since = list(self._entries)
            self._entries.clear()
            for entry in [*earlier, *added_since]:
                self.add(entry)

    def after(self, ms: int, limit: int) -> list[Entry]:
        """The oldest samples later than ``ms``, at most ``limit`` of them, in order."""
        with self._changed:
            return list(islice((entry for entry in self._entries if entry.ms > ms), limit))

    def newest(self) -> Entry | None:
        """The sample added last."""
        with self._changed:
            return self._entries[-1] if self._entries else None

    def wait_for_newer(self, entry: Entry | None, timeout_s: float) -> None:
        """Wait until the newest sample is not ``entry``, the timeout has passed, or ``wake`` is called."""
        with self._changed:
            if self.newest() == entry:
                self._changed.wait(timeout_s)

    def wake(self) -> None:
        """End a wait."""
        with self._changed:
            self._changed.notify_all()


class ClockOffset:
    """This node's clock minus the head node's, from the best reading of the last minute.

    The head node's clock is read through Redis every CLOCK_EVERY_S. A reading with a shorter round trip has
    the smaller error, so the best one is kept while it is valid, unless a new one contradicts it.
    """

    def __init__(self) -> None:
        self._best: ClockReading | None = None

    def add(self, new: ClockReading) -> None:
        """Take a reading; ignored if the best one has the smaller error and both can be true."""
        best = self._best
        agree = best is not None and abs(best.offset_s - new.offset_s) <= best.error_s + new.error_s
        if best is None or not agree or not _valid(best, new.at_s) or new.error_s <= best.error_s:
            self._best = new

    def at(self, now_s: float) -> float | None:
        """The offset in seconds; None where no reading is valid.

        Args:
            now_s: this node's monotonic clock.
        """
        best = self._best
        return round(best.offset_s, 6) if best is not None and _valid(best, now_s) else None


def _valid(reading: ClockReading, now_s: float) -> bool:
    return now_s - reading.at_s <= CLOCK_READING_VALID_S


class Publisher:
    """Publishes one node's samples until it is stopped."""

    def __init__(self, settings: RedisSettings, node: str, ring: Path) -> None:
        """Nothing is read or sent before ``start``.

        Args:
            settings: how to reach Redis.
            node: the node's name.
            ring: folder of the ring, read once: the samples of an earlier process.
        """
        self._settings = settings
        self._node = node
        self._ring = ring
        self._backlog = Backlog()
        self._stopping = Event()
        self._clock = ClockOffset()
        self._error = ""
        self._thread = Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def offer(self, time_ns: int, line: str) -> None:
        """Take the newest sample; returns at once."""
        self._backlog.add(Entry(time_ns, line))

    def stop(self) -> None:
        """End the thread; unsent samples are in the ring, from where the next process sends them."""
        self._stopping.set()
        self._backlog.wake()
        self._thread.join(_JOIN_S)

    @property
    def alive(self) -> bool:
        """Whether its thread runs; it ends by a bug or by ``stop`` alone."""
        return self._thread.is_alive()

    @property
    def clock_offset_s(self) -> float | None:
        """This node's clock minus the head node's; None while it is not known."""
        return self._clock.at(time.monotonic())

    def _run(self) -> None:
        try:
            self._backlog.prepend(read_since(self._ring))
        except OSError as error:
            log("ring_not_published", level=WARNING, error=str(error))
        while not self._stopping.is_set():
            try:
                with RedisWriter(self._settings, self._node) as writer:
                    self._publish(writer)
            except (RedisError, MonitorError) as error:
                if str(error) != self._error:
                    self._error = str(error)
                    log("redis_unavailable", level=WARNING, error=self._error, kept_samples=KEEP_LINES)
                self._stopping.wait(RETRY_S)

    def _publish(self, writer: RedisWriter) -> None:
        last_ms, published, clock_due_s = writer.last_ms(), None, 0.0
        if self._error:
            self._error = ""
            log("redis_available")
        while not self._stopping.is_set():
            if time.monotonic() >= clock_due_s:
                self._clock.add(writer.read_clock())
                clock_due_s = time.monotonic() + CLOCK_EVERY_S
            newest = self._backlog.newest()
            if newest is None or newest is published:
                self._backlog.wait_for_newer(published, _WAIT_S)
                continue
            if last_ms > newest.ms + SET_BACK_MS:
                log("redis_stream_deleted", level=WARNING, last_ms=last_ms)
                writer.delete_stream()
                last_ms = 0
            batch = self._backlog.after(last_ms, BATCH)
            writer.send(batch, newest)
            last_ms = batch[-1].ms if batch else last_ms
            if last_ms >= newest.ms:
                published = newest
