"""The requests that a model server has, each with the digest by which it is known again."""

import hashlib
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.router.http.bodies import Body

LEFT_S = 60.0
"""A server may continue a request for this long after its client has left."""
_KEPT_LEFT = 64


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
    again: bool = False
    """The server that had it before was lost."""

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

    def at(self, time_ns: int, *, left_within_s: float = LEFT_S) -> list[SentRequest]:
        """The requests that the server had at a moment, oldest first; with those whose clients just left."""
        left = [request for left_ns, request in self._left if time_ns - left_ns < left_within_s * 1e9]
        found = [request for request in [*self._requests, *left] if request.sent_ns <= time_ns]
        return sorted(found, key=lambda request: request.sent_ns)


def digests(requests: Sequence[SentRequest]) -> int:
    """How many different requests these are."""
    return len({request.digest for request in requests})
