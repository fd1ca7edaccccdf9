"""Failures of model servers, and the requests that caused them: who is blamed, and what is refused then.

A poison request is one that ends its server. It is not sent again, its digest is refused for a while, and the
end counts against its key: a key with too many of them is refused too.

Of several requests in flight any may be the cause, and nothing tells which: llama-server's log has its own
numbers and no line for what a slot computes, and a request may end it long after it was sent. So all are
suspects, and only one that was alone, or that an earlier end left as a suspect, is to blame. Suspects of one
model are sent one after the other, also when their clients ask again. An end counts against a key only if no
other key had a request in flight.
"""

import asyncio
import logging
import math
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self
from weakref import WeakValueDictionary

from pydantic import BaseModel, Field

from harness.contracts.diagnosis import Diagnosis, FailureClass
from harness.router.config import RouterConfig
from harness.router.errors import RouterError
from harness.router.http.metrics import Metrics
from harness.router.in_flight import LEFT_S, SentRequest, digests
from harness.router.json_log import log

POISON = str(FailureClass.POISON_REQUEST)
CRASH_SIGNALS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGBUS})
"""Signals that a process causes itself; other programs send the others."""

_KEPT_FAILURES = 100
_KEPT_DIGESTS = 4096
_NAMED = 8


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


@dataclass
class _Suspicion:
    """A request that may have ended servers."""

    until_s: float
    """On the monotonic clock."""
    nodes: set[str] = field(default_factory=set)
    """Nodes of the pool whose samples say so; empty for what the router saw itself."""


class Turn:
    """A suspect's turn: no other is sent before it is answered, its server is lost, or a time has passed.

    Args:
        wait_s: how long it waits for the others.
        limit_s: how long they wait for it once it has a server.
    """

    def __init__(self, lock: asyncio.Lock, wait_s: float, limit_s: float) -> None:
        self._lock = lock
        self._wait_s = wait_s
        self._limit_s = limit_s
        self._held = False
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._lock.acquire()
        except TimeoutError:
            message = (
                "requests that may have ended a model server are sent one after the other, "
                f"and this one had no turn within {self._wait_s:g} s"
            )
            raise RouterError(
                503, "queue_timeout", message, retry_after_s=round(self._limit_s) or 1
            ) from None
        self._held = True
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._timer:
            self._timer.cancel()
        self._end()

    def begin(self) -> None:
        """It has a server now; the others do not wait for a slow answer for ever."""
        self._timer = asyncio.get_running_loop().call_later(self._limit_s, self._end)

    def _end(self) -> None:
        if self._held:
            self._held = False
            self._lock.release()


class Failures:
    """The last failures of all model servers, and what is refused because of them.

    Args:
        several_keys: whether clients have keys of their own; a key that all share is never refused.
    """

    def __init__(self, config: RouterConfig, metrics: Metrics, *, several_keys: bool = False) -> None:
        self._refuse_s = config.poison_refuse_s
        self._key_limit = config.poison_key_limit if several_keys else 0
        # Twice the time in which a server that spins is ended.
        self._turn_s = 2 * (2 * config.suspect_s + config.spin_deadline_s)
        self._wait_s = config.queue_wait_s
        self._metrics = metrics
        self.history: deque[Failure] = deque(maxlen=_KEPT_FAILURES)
        """The last failures, oldest first."""
        self._suspects: dict[str, _Suspicion] = {}
        """By digest, oldest first."""
        self._cleared: dict[str, float] = {}
        """By digest, when one that was sent again was answered; on the monotonic clock."""
        self._refused: dict[str, float] = {}
        """By digest, until when; on the monotonic clock, oldest first."""
        self._deaths: dict[str, deque[float]] = {}
        """By key, when its requests ended a server; on the monotonic clock."""
        self._turns = WeakValueDictionary[str, asyncio.Lock]()
        """By model."""

    def culprit(
        self, sent: Sequence[SentRequest], in_flight: Sequence[SentRequest], *, node: str | None = None
    ) -> SentRequest | None:
        """The request that ended a server; None where it may be any of several: these are suspects then.

        Args:
            sent: those that may have ended it.
            in_flight: all that it had; if they are of one key, the end counts against it in any case.
            node: the node of the pool whose samples show the end; None where the router saw it itself.
        """
        requests = {request.digest: request for request in sent}
        before = [request for digest, request in requests.items() if self._suspicion(digest)]
        suspects = before if len(before) == 1 else list(requests.values())
        if len(suspects) == 1:
            return suspects[0]
        for request in suspects:
            # A node's sample comes when another server may have answered already.
            if time.monotonic() - self._cleared.get(request.digest, -math.inf) > LEFT_S:
                self._suspect(request, node)
        if not node:
            self._count(in_flight)
        return None

    def blame(
        self,
        request: SentRequest,
        message: str,
        in_flight: Sequence[SentRequest],
        *,
        node: str | None = None,
        diagnosis: Diagnosis | None = None,
        start_id: str | None = None,
    ) -> None:
        """Record that a request ended its server, which had those in flight; its digest is refused then.

        The samples of one node alone count against no key: a node may lie.
        """
        suspicion = self._suspect(request, node)
        self._refused.pop(request.digest, None)
        self._refused[request.digest] = time.monotonic() + self._refuse_s
        _forget_oldest(self._refused)
        if len(suspicion.nodes) != 1:
            self._count(in_flight)
        self._metrics.poison_request(request.key)
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
        fields = {"model", "message", "request_id", "key", "digest"}
        log("poison_request", level=logging.WARNING, **failure.model_dump(include=fields))

    def note_suspects(
        self,
        sent: Sequence[SentRequest],
        message: str,
        *,
        diagnosis: Diagnosis | None = None,
        start_id: str | None = None,
    ) -> None:
        """Record that one of several requests ended their server."""
        failure = Failure(
            start_id=start_id, model=sent[0].model, failure_class=POISON, message=message, diagnosis=diagnosis
        )
        self.history.append(failure)
        log("poison_suspects", level=logging.WARNING, **failure.model_dump(include={"model", "message"}))

    def answered(self, request: SentRequest) -> None:
        """A server has answered the request in full: it is no suspect."""
        self._suspects.pop(request.digest, None)
        if request.again:
            self._cleared[request.digest] = time.monotonic()
            _forget_oldest(self._cleared)

    def suspects(self, request: SentRequest) -> bool:
        """Whether the request may have ended a server."""
        return self._suspicion(request.digest) is not None

    def turn(self, request: SentRequest) -> Turn:
        """To be held from before a request is sent until it is answered; only suspects wait for it."""
        lock = asyncio.Lock()
        if self.suspects(request):
            lock = self._turns.setdefault(request.model, lock)
        return Turn(lock, self._wait_s, self._turn_s)

    def _suspicion(self, digest: str) -> _Suspicion | None:
        suspicion = self._suspects.get(digest)
        return suspicion if suspicion and suspicion.until_s > time.monotonic() else None

    def _suspect(self, request: SentRequest, node: str | None) -> _Suspicion:
        """Note a suspect. What the router saw itself needs no node's samples any more."""
        before = self._suspicion(request.digest)
        trusted = node is None or (before is not None and not before.nodes)
        nodes = set() if trusted or node is None else {node} | (before.nodes if before else set())
        suspicion = _Suspicion(time.monotonic() + self._refuse_s, nodes)
        self._suspects.pop(request.digest, None)
        self._suspects[request.digest] = suspicion
        _forget_oldest(self._suspects)
        return suspicion

    def _count(self, in_flight: Sequence[SentRequest]) -> None:
        """Count an end against the key of all requests; against none if there are several."""
        keys = {request.key for request in in_flight}
        for key in keys if self._key_limit and len(keys) == 1 else ():
            self._deaths.setdefault(key, deque(maxlen=self._key_limit)).append(time.monotonic())

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


def describe(
    poison: SentRequest | None, suspects: Sequence[SentRequest], in_flight: Sequence[SentRequest]
) -> str:
    """Which request ended a server, or which may have: for the administrator."""
    where = "in flight" if len(suspects) == len(in_flight) else "sent near the last sign of life"
    count = digests(suspects)
    if poison and count == 1:
        return f"{poison} was the only one {where}"
    if poison:
        return f"{poison} was in flight at an earlier end too, as the only suspect of {count}"
    some = "; ".join(map(str, suspects[:_NAMED]))
    more = f"; {len(suspects) - _NAMED} more" if len(suspects) > _NAMED else ""
    return f"{len(suspects)} requests were {where}: {some}{more}"


def _forget_oldest(by_digest: dict[str, Any]) -> None:
    while len(by_digest) > _KEPT_DIGESTS:
        del by_digest[next(iter(by_digest))]
