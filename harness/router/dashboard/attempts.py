"""How often a login may be tried: after a few failures a client waits, each time twice as long."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

FREE = 5
"""Failures that cost nothing."""
LONGEST_S = 300.0
_FORGOTTEN_S = 3600.0
"""A client that did not fail for so long begins anew."""
_CLIENTS = 1024
"""Addresses that are kept; the one that failed longest ago goes first."""


@dataclass
class _Failures:
    count: int
    last_s: float
    until_s: float


class Attempts:
    """Counts failed logins by the client's address. Nobody's failures keep another client out.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def wait_s(self, client: str) -> int:
        """Whole seconds before ``client`` may try again; 0 where it may now."""
        seen = self._failures.get(client)
        return max(0, math.ceil(seen.until_s - self._now())) if seen else 0

    def failed(self, client: str) -> None:
        """A try with a wrong key; after the free ones the client waits 1, 2, 4, ... s."""
        now = self._now()
        seen = self._failures.pop(client, None)
        count = 1 + (seen.count if seen and now - seen.last_s < _FORGOTTEN_S else 0)
        pause_s = min(LONGEST_S, 2.0 ** min(count - FREE - 1, 16)) if count > FREE else 0.0
        self._failures[client] = _Failures(count, now, now + pause_s)
        while len(self._failures) > _CLIENTS:
            self._failures.popitem(last=False)

    def succeeded(self, client: str) -> None:
        """A try with the right key: the client begins anew."""
        self._failures.pop(client, None)
