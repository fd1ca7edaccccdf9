"""A call that may hang, kept out of the way of those who want its answer."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Makes a call again and again in a thread of its own, one at a time.

    A driver whose device fell off the bus may not come back from a call, and the thread with it: the answer
    then stays what it was, and its age tells.
    """

    def __init__(self, call: Callable[[], T], first: T, wait_s: float = 0.25) -> None:
        """Prepare; the thread begins with the first ``latest``.

        Args:
            call: what to call.
            first: the answer until there is one.
            wait_s: the longest that ``latest`` waits.
        """
        self._call = call
        self._answer = first
        self._wait_s = wait_s
        self._wanted, self._done = threading.Event(), threading.Event()
        self._asked_at: float | None = None
        self._thread: threading.Thread | None = None

    def latest(self, now_s: float) -> tuple[T, float]:
        """The newest answer, and for how many seconds a call has been under way without one.

        Args:
            now_s: monotonic clock, seconds.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        if self._asked_at is None:
            self._asked_at = now_s
            self._wanted.set()
        if self._done.wait(self._wait_s):
            self._done.clear()
            self._asked_at = None
        return self._answer, 0.0 if self._asked_at is None else now_s - self._asked_at

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            self._answer = self._call()
            self._done.set()
