"""A hold: for a while no request is given the coordinator, while what it stands on is changed."""

import asyncio
import time
from collections.abc import Callable


class Hold:
    """Begun and ended by an administrator; it ends by itself, so that nobody is held for ever."""

    def __init__(self, ended: Callable[[], None]) -> None:
        """``ended`` is called when it ends."""
        self._ended = ended
        self._until: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def active(self) -> bool:
        """Whether requests are held."""
        return self._until is not None

    @property
    def left_s(self) -> float:
        """Seconds until it ends by itself; 0 where there is none."""
        return max(0.0, self._until - time.monotonic()) if self._until is not None else 0.0

    def begin(self, deadline_s: float) -> None:
        """Hold requests, for at most ``deadline_s``; begun again, it lasts that long from now."""
        self._cancel()
        self._until = time.monotonic() + deadline_s
        self._timer = asyncio.get_running_loop().call_later(deadline_s, self.end)

    def end(self) -> None:
        """Let requests go on."""
        self._cancel()
        if self._until is not None:
            self._until = None
            self._ended()

    def _cancel(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
