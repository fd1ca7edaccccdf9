"""Who measures on this cluster now: one at a time, from wherever they were started."""

import time
from dataclasses import dataclass

from harness.router.errors import RouterError


@dataclass(frozen=True)
class Lease:
    """Held until a moment on the monotonic clock, unless it is renewed."""

    owner: str
    since_s: float
    until_s: float


class RunLease:
    """At most one lease; unless renewed it ends by itself, so that a killed run blocks nobody for long."""

    def __init__(self) -> None:
        self._lease: Lease | None = None

    def take(self, owner: str, seconds: float) -> None:
        """Take or renew it.

        Raises:
            RouterError: somebody else has it (409).
        """
        now, held = time.monotonic(), self._lease
        if held and held.until_s > now and held.owner != owner:
            age, left = now - held.since_s, held.until_s - now
            raise RouterError(
                409,
                "leased",
                f"run {held.owner} has this cluster, for {age:.0f} s now; wait for it or stop it "
                f"(if it was killed, its lease ends in {left:.0f} s)",
            )
        since_s = held.since_s if held and held.owner == owner else now
        self._lease = Lease(owner, since_s, now + seconds)

    def give(self, owner: str) -> None:
        """Give it back; somebody else's stays."""
        if self._lease and self._lease.owner == owner:
            self._lease = None
