"""The limits of one key: requests in flight, a rate, the queue, memory.

The administrator's key has no such limits, and a reserve of connections. Requests without a key share one
quota, as if they had a key.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from starlette.requests import Request

from harness.router.config import RouterConfig
from harness.router.errors import RouterError
from harness.router.http.bodies import Body, BodyStore
from harness.router.http.metrics import Metrics

ADMIN = "admin"
NO_KEY = "none"

_BURST_S = 5
"""After a pause, a key may send the requests of this many seconds at once."""
_RETRY_S = 1
_QUEUE_RETRY_S = 10
_BODIES_RETRY_S = 10


class KeyUsage:
    """What the requests of one key use now."""

    def __init__(self, key: str, burst: float) -> None:
        self.key = key
        self.in_flight = 0
        self.queued = 0
        self.body_bytes = 0
        self.allowance = burst
        """Requests that it may send now."""
        self.allowed_s = time.monotonic()


class Quotas:
    """The limits of each key, and of all keys together.

    Args:
        keys: number of router keys. A single key may use all that there is for keys.
    """

    def __init__(self, config: RouterConfig, keys: int, metrics: Metrics) -> None:
        reserve = min(config.admin_reserve, config.connections_limit // 2)
        self._in_flight_limit = config.connections_limit - reserve
        self._config = config
        self._single_key = keys == 1
        self._burst = max(1.0, _BURST_S * config.requests_per_s_per_key)
        self._keys: dict[str, KeyUsage] = {}
        self._in_flight = 0
        self._body_bytes = 0
        self.store = BodyStore(config.state_dir)
        metrics.count_body_bytes(lambda: self._body_bytes)

    def begin(self, key: str) -> "RequestUsage":
        """Count a request that has arrived; ``end`` of the result ends it.

        Raises:
            RouterError: its key has too many in flight or sends too many (429), or all keys have (503).
        """
        usage = self._keys.setdefault(key, KeyUsage(key, self._burst))
        if key != ADMIN:
            if self._in_flight >= self._in_flight_limit:
                message = f"{self._in_flight} requests are in flight already"
                raise RouterError(503, "too_many_requests", message, retry_after_s=_RETRY_S)
            if usage.in_flight >= self._share(key, self._config.requests_per_key, self._in_flight_limit):
                message = f"{usage.in_flight} requests of this key are in flight already"
                raise RouterError(429, "too_many_requests_of_key", message, retry_after_s=_RETRY_S)
            self._check_rate(usage)
            self._in_flight += 1
        usage.in_flight += 1
        return RequestUsage(self, usage)

    def end(self, usage: KeyUsage) -> None:
        """A request has ended."""
        usage.in_flight -= 1
        if usage.key != ADMIN:
            self._in_flight -= 1

    def check_queue(self, usage: KeyUsage) -> None:
        """Check that one more request may wait.

        Raises:
            RouterError: too many of its key do (429).
        """
        limit = self._share(usage.key, self._config.queue_per_key, self._config.queue_limit)
        if limit <= usage.queued and limit < self._config.queue_limit:  # the whole queue bounds itself
            message = f"{usage.queued} requests of this key wait for the coordinator already"
            raise RouterError(429, "queue_full_for_key", message, retry_after_s=_QUEUE_RETRY_S)

    def take_body(self, usage: KeyUsage, size_bytes: int, *, answer: bool) -> None:
        """Count bytes of a body; a negative size gives them back. Answers may use half of the limit."""
        if size_bytes > 0 and usage.key != ADMIN:
            limit = self._config.bodies_limit_bytes
            key_limit = self._share(usage.key, self._config.bodies_per_key_bytes, limit)
            share = 2 if answer else 1
            if self._body_bytes + size_bytes > limit // share:
                message = f"the bodies of all requests in flight have {self._body_bytes} bytes already"
                raise RouterError(503, "bodies_full", message, retry_after_s=_BODIES_RETRY_S)
            if usage.body_bytes + size_bytes > key_limit // share:
                message = f"the bodies of this key's requests in flight have {usage.body_bytes} bytes already"
                raise RouterError(429, "bodies_full_for_key", message, retry_after_s=_BODIES_RETRY_S)
        self._body_bytes += size_bytes
        usage.body_bytes += size_bytes

    def _share(self, key: str, limit: int, of_all: int) -> int:
        """The limit of a key: as configured, else half of the total; the total for a single router key."""
        return limit or (of_all if self._single_key and key != NO_KEY else max(1, of_all // 2))

    def _check_rate(self, usage: KeyUsage) -> None:
        per_s = self._config.requests_per_s_per_key
        if not per_s:
            return
        now_s = time.monotonic()
        allowance = usage.allowance + (now_s - usage.allowed_s) * per_s
        usage.allowance, usage.allowed_s = min(allowance, self._burst), now_s
        if usage.allowance < 1:
            message = f"this key sends more than {per_s:g} requests a second"
            raise RouterError(429, "too_many_requests_a_second", message, retry_after_s=_RETRY_S)
        usage.allowance -= 1


class RequestUsage:
    """What one request uses of its key's quota, until its end."""

    def __init__(self, quotas: Quotas, usage: KeyUsage) -> None:
        self._quotas = quotas
        self._usage = usage
        self._bodies: list[Body] = []

    def new_body(self, *, answer: bool = False) -> Body:
        """An empty body, which this request keeps until its end.

        ``append`` raises RouterError where all bodies, or those of the key, have too many bytes.

        Args:
            answer: it is for what the client has still to take of its answer.
        """
        body = Body(self._quotas.store, partial(self._take_body, answer=answer))
        self._bodies = [*(other for other in self._bodies if not other.closed), body]
        return body

    async def hold(self, data: bytes) -> Body:
        """A body of these bytes; see ``new_body``."""
        body = self.new_body()
        await body.append(data)
        await body.complete()
        return body

    @contextmanager
    def queued(self) -> Iterator[None]:
        """The time in which it waits for a server.

        Raises:
            RouterError: too many requests of its key wait (429).
        """
        if self._usage.key != ADMIN:
            self._quotas.check_queue(self._usage)
        self._usage.queued += 1
        try:
            yield
        finally:
            self._usage.queued -= 1

    def end(self) -> None:
        """The request has ended: it gives its part back."""
        for body in self._bodies:
            body.close()
        self._bodies = []
        self._quotas.end(self._usage)

    def _take_body(self, size_bytes: int, *, answer: bool) -> None:
        self._quotas.take_body(self._usage, size_bytes, answer=answer)


def usage_of(request: Request) -> RequestUsage:
    """What ``Gate`` has counted of this request."""
    usage: RequestUsage = request.state.usage
    return usage
