"""The order in which the router stops: refuse what waits, finish what is being answered, then let go."""

import asyncio
from collections.abc import Callable
from types import FrameType

import uvicorn


class Drain:
    """Tells those who asked for it that a stop has begun, as soon as the signal is there."""

    def __init__(self) -> None:
        self._told: list[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = []

    def tell(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called in the running loop once a stop begins."""
        self._told.append((asyncio.get_running_loop(), callback))

    def begin(self) -> None:
        """A stop begins; may be called by a signal handler."""
        for loop, callback in self._told:
            loop.call_soon_threadsafe(callback)


class DrainingServer(uvicorn.Server):
    """uvicorn waits for the answers in flight; here, nobody new waits meanwhile."""

    def __init__(self, config: uvicorn.Config, drain: Drain) -> None:
        super().__init__(config)
        self._drain = drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT has come."""
        self._drain.begin()
        super().handle_exit(sig, frame)
