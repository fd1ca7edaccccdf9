"""Sends each sample to Redis, in order and once, in a thread of its own.

The stream says what it has: after every connection the sending goes on behind its last entry, with what is
left of the last ten minutes. An entry's id is made of its sample's time and Redis refuses one that is not
newer than the last, so a sample whose answer was lost on the way is not stored twice. The thread that
samples never waits for this one.
"""

import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

from redis.exceptions import RedisError

from harness.monitor.config_file import MonitorError
from harness.monitor.redis.backlog import Backlog, Entry
from harness.monitor.redis.offset import Reading, better, offset_now
from harness.monitor.redis.settings import RedisSettings
from harness.monitor.redis.writer import StreamLink
from harness.monitor.ring import read_since

BATCH = 50
"""Samples in one transaction: 50 of some kilobytes do not hold Redis up."""
RETRY_S = 2.0
CLOCK_EVERY_S = 10.0
SET_BACK_MS = 60_000
"""A stream that ends this far in our future is of a clock that was wrong."""
_STOP_WITHIN_S = 1.0
_LOOK_AGAIN_S = 1.0


class Publisher:
    """Publishes one node's samples until it is stopped."""

    def __init__(self, settings: RedisSettings, node: str, ring: Path, say: Callable[[str], None]) -> None:
        """Nothing is read or sent before ``start``.

        Args:
            ring: folder of the ring, read once: samples of an earlier life of the monitor.
            say: told in one line that Redis is away and why, and that it is back.
        """
        self._settings = settings
        self._node = node
        self._ring = ring
        self._say = say
        self._backlog = Backlog()
        self._stopping = Event()
        self._clock: Reading | None = None
        self._trouble = ""
        self._thread = Thread(target=self._run, name="publisher", daemon=True)

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def offer(self, time_ns: int, line: str) -> None:
        """Take the newest sample; returns at once."""
        self._backlog.add(Entry(time_ns, line))

    def stop(self) -> None:
        """End the thread; what was not sent is in the ring, and is sent by the next life."""
        self._stopping.set()
        self._backlog.wake()
        self._thread.join(_STOP_WITHIN_S)

    @property
    def clock_offset_s(self) -> float | None:
        """This node's clock minus the head node's; None while it is not known."""
        return offset_now(self._clock, time.monotonic())

    def _run(self) -> None:
        try:
            self._backlog.begin_with(read_since(self._ring))
        except OSError as error:
            self._say(f"what the ring holds is not sent to Redis: {error}")
        while not self._stopping.is_set():
            try:
                with StreamLink(self._settings, self._node) as link:
                    self._serve(link)
            except (RedisError, MonitorError) as error:
                self._complain(str(error))
                self._stopping.wait(RETRY_S)

    def _serve(self, link: StreamLink) -> None:
        last_ms, shown, clock_due_s = link.last_ms(), None, 0.0
        if self._trouble:
            self._trouble = ""
            self._say("Redis is back")
        while not self._stopping.is_set():
            if time.monotonic() >= clock_due_s:
                self._clock = better(self._clock, link.read_clock())
                clock_due_s = time.monotonic() + CLOCK_EVERY_S
            newest = self._backlog.newest()
            if newest is None or newest is shown:
                self._backlog.wait_for_other_than(shown, _LOOK_AGAIN_S)
                continue
            if last_ms > newest.ms + SET_BACK_MS:
                self._say("this node's clock was set back: its stream in Redis begins anew")
                link.forget()
                last_ms = 0
            batch = self._backlog.after(last_ms, BATCH)
            link.send(batch, newest)
            last_ms = batch[-1].ms if batch else last_ms
            if last_ms >= newest.ms:
                shown = newest

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._say(f"no Redis ({trouble}); ten minutes of samples are kept for it")
