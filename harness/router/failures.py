"""Failures of model servers, and the requests that caused them: who is blamed, and what is refused then.

A poison request is one that ends its server. It is not sent again, its digest is refused for a while, and its
death counts against its key: a key with too many of them is refused too.
"""

import hashlib
import logging
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import BaseModel, Field

from harness.contracts.diagnosis import Diagnosis, FailureClass
from harness.router.config import RouterConfig
from harness.router.errors import RouterError
from harness.router.http.bodies import Body
from harness.router.http.metrics import Metrics
from harness.router.json_log import log

POISON = str(FailureClass.POISON_REQUEST)
CRASH_SIGNALS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGBUS})
"""Signals that a process causes itself; other programs send the others."""

_KEPT_FAILURES = 100
_KEPT_DIGESTS = 4096
_KEPT_LEFT = 64
_LEFT_S = 60.0
"""A server may continue a request for this long after its client has left."""


class Failure(BaseModel):
    """A model server that ended unexpectedly, or did not become ready."""

    time_ns: int = Field(default_factory=time.time_ns)
    start_id: str | None = None
    model: str
    failure_class: str
    message: str
    diagnosis: Diagnosis | None = None
    request_id: str | None = None
    """The request that caused it, where one did; with its key and digest."""
    key: str | None = None
    digest: str | None = None


class Fate(StrEnum):
    """What became of a server that broke a request off, and whether the request is the cause."""

    NOTHING = "nothing"
    """It continues, another request ended it, or the cause is unknown."""
    LOST = "lost"
    """It ended; the cause is unknown."""
    POISONED = "poisoned"
    """The request ended it."""


@dataclass(frozen=True, eq=False)
class SentRequest:
    """One request that was sent to a server. Times are UTC, nanoseconds."""

    request_id: str
    key: str
    """Names the client's key without showing it."""
    digest: str
    """Of path and body."""
    model: str
    sent_ns: int = field(default_factory=time.time_ns)

    def __str__(self) -> str:
        return f"request {self.request_id} of key {self.key} (digest {self.digest})"


async def digest_of(path: str, body: Body) -> str:
    """The digest of a request: equal for requests that do the same to a server."""
    digest = hashlib.sha256(path.encode() + b"\0")
    async for piece in body.pieces():
        digest.update(piece)
    return digest.hexdigest()[:16]


class InFlight:
    """The requests that one server works on."""

    def __init__(self) -> None:
        self._requests: list[SentRequest] = []
        self._left: deque[tuple[int, SentRequest]] = deque(maxlen=_KEPT_LEFT)

    def add(self, request: SentRequest) -> None:
        self._requests.append(request)

    def end(self, request: SentRequest, *, answered: bool = False) -> None:
        """The request is over for its client; one without its whole answer may still occupy the server."""
        if request in self._requests:
            self._requests.remove(request)
            if not answered:
                self._left.append((time.time_ns(), request))

    def at(self, time_ns: int, *, left_within_s: float = _LEFT_S) -> list[SentRequest]:
        """The requests that the server had at a moment, oldest first; with those whose clients just left."""
        left = [request for left_ns, request in self._left if time_ns - left_ns < left_within_s * 1e9]
        found = [request for request in [*self._requests, *left] if request.sent_ns <= time_ns]
        return sorted(found, key=lambda request: request.sent_ns)


class Failures:
    """The last failures of all model servers, and what is refused because of them.

    Args:
        several_keys: whether clients have keys of their own; a key that all share is never refused.
    """

    def __init__(self, config: RouterConfig, metrics: Metrics, *, several_keys: bool = False) -> None:
        self._refuse_s = config.poison_refuse_s
        self._key_limit = config.poison_key_limit if several_keys else 0
        self._metrics = metrics
        self.history: deque[Failure] = deque(maxlen=_KEPT_FAILURES)
        """The last failures, oldest first."""
        self._refused: dict[str, float] = {}
        """By digest, until when; on the monotonic clock, oldest first."""
        self._deaths: dict[str, deque[float]] = {}
        """By key, when its requests ended a server; on the monotonic clock."""

    def blame(
        self,
        request: SentRequest,
        message: str,
        *,
        diagnosis: Diagnosis | None = None,
        start_id: str | None = None,
    ) -> None:
        """Record that a request ended its server; its digest is refused from now on."""
        now_s = time.monotonic()
        failure = Failure(
            start_id=start_id,
            model=request.model,
            failure_class=POISON,
            message=message,
            diagnosis=diagnosis,
            request_id=request.request_id,
            key=request.key,
            digest=request.digest,
        )
        self.history.append(failure)
        self._refused.pop(request.digest, None)
        self._refused[request.digest] = now_s + self._refuse_s
        while len(self._refused) > _KEPT_DIGESTS:
            del self._refused[next(iter(self._refused))]
        if self._key_limit:
            self._deaths.setdefault(request.key, deque(maxlen=self._key_limit)).append(now_s)
        self._metrics.poison_request(request.key)
        fields = {"model", "message", "request_id", "key", "digest"}
        log("poison_request", level=logging.WARNING, **failure.model_dump(include=fields))

    def check(self, request: SentRequest) -> None:
        """Refuse a request that has ended a server before.

        Raises:
            RouterError: the same request did (400), or too many requests of its key did (429).
        """
        left_s = self._refused.get(request.digest, 0) - time.monotonic()
        if left_s > 0:
            self._metrics.poison_refusals.inc()
            raise self.refusal(request, left_s)
        self.check_key(request.key)

    def check_key(self, key: str) -> None:
        """Refuse a key whose requests have ended too many servers; before anything is loaded for it.

        Raises:
            RouterError: too many did (429).
        """
        deaths = self._deaths.get(key, ())
        now_s = time.monotonic()
        left_s = deaths[0] + self._refuse_s - now_s if deaths and len(deaths) == self._key_limit else 0
        if left_s > 0:
            self._metrics.poison_refusals.inc()
            wait_s = round(left_s) or 1
            message = f"{len(deaths)} requests of this key have ended a model server; ask again in {wait_s} s"
            raise RouterError(429, "key_suspended", message, retry_after_s=wait_s)

    def refusal(self, request: SentRequest, left_s: float | None = None) -> RouterError:
        """The error for a request that ended its server; one that no client repeats by itself."""
        seconds = round(self._refuse_s if left_s is None else left_s) or 1
        return RouterError(
            400,
            POISON,
            f"this request ended its model server; it is not sent again, and the same one is refused for "
            f"{seconds} s (digest {request.digest}): change it",
        )
