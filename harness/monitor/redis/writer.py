"""Writes one node's samples to Redis, and measures this node's clock against that of Redis."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionLostError
from redis.exceptions import ResponseError
from redis.retry import Retry

from harness.monitor.redis import (
    FIELD,
    LATEST_TTL_MS,
    STREAM_SAMPLES,
    RedisSettings,
    connection_options,
    latest_key,
    stream_key,
)

_NOT_NEWER = "equal or smaller"


@dataclass(frozen=True)
class Entry:
    """One sample as its line of JSON."""

    time_ns: int
    line: str

    @property
    def ms(self) -> int:
        """Its time in milliseconds, by which a stream is ordered."""
        return self.time_ns // 1_000_000


@dataclass(frozen=True)
class ClockReading:
    """One comparison of this node's clock with the head node's, seconds."""

    offset_s: float
    """This node's clock minus the head node's."""
    error_s: float
    """The true offset differs by at most this: half of the round trip."""
    at_s: float
    """When it was taken, on this node's monotonic clock."""

    @classmethod
    def from_round_trip(cls, sent_ns: int, head_ns: int, received_ns: int, at_s: float) -> Self:
        """Cristian's algorithm (F. Cristian, Probabilistic clock synchronization, 1989).

        The head node read its clock at an unknown moment between our two. The middle of the round trip is
        the estimate, half of the round trip the largest error, however the two ways differ.

        Args:
            sent_ns: our clock when the request was sent, UTC nanoseconds.
            head_ns: the head node's clock in the answer, UTC nanoseconds.
            received_ns: our clock when the answer came, UTC nanoseconds.
            at_s: our monotonic clock when the answer came, seconds.
        """
        middle_ns = (sent_ns + received_ns) / 2
        return cls((middle_ns - head_ns) / 1e9, (received_ns - sent_ns) / 2e9, at_s)


class RedisWriter:
    """One connection that writes a node's stream and latest state. Each call may raise redis's RedisError.

    A lost connection is never made again here: the Redis behind a new one may have lost its data.
    """

    def __init__(self, settings: RedisSettings, node: str) -> None:
        """Does not connect yet.

        Raises:
            MonitorError: the password cannot be read.
        """
        options = connection_options(settings) | {"redis_connect_func": _connects_once()}
        self._redis: Any = redis.Redis(**options, retry=Retry(NoBackoff(), 0))
        self._stream = stream_key(node)
        self._latest = latest_key(node)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._redis.close()

    def last_ms(self) -> int:
        """Time of the stream's last sample in milliseconds; 0 for an empty stream."""
        end = self._redis.xrevrange(self._stream, count=1)
        return int(end[0][0].partition(b"-")[0]) if end else 0

    def send(self, entries: Sequence[Entry], newest: Entry) -> None:
        """Append samples and set the node's latest state in one transaction.

        Redis refuses a sample that is not newer than the stream's last: the stream has it already.

        Args:
            entries: samples in order of time.
            newest: the newest sample, whether or not it is one of them.
        """
        pipeline = self._redis.pipeline(transaction=True)
        for entry in entries:
            fields, entry_id = {FIELD: entry.line}, f"{entry.ms}-0"
            pipeline.xadd(self._stream, fields, id=entry_id, maxlen=STREAM_SAMPLES, approximate=True)
        fresh_ms = LATEST_TTL_MS - max(0, time.time_ns() // 1_000_000 - newest.ms)
        if fresh_ms > 0:
            pipeline.set(self._latest, newest.line, px=fresh_ms)
        for answer in pipeline.execute(raise_on_error=False):
            if isinstance(answer, ResponseError) and _NOT_NEWER not in str(answer):
                raise answer

    def delete_stream(self) -> None:
        """Remove the node's stream."""
        self._redis.delete(self._stream)

    def read_clock(self) -> ClockReading:
        """Compare our clock with that of Redis (TIME)."""
        sent_ns = time.time_ns()
        seconds, micros = self._redis.time()
        received_ns = time.time_ns()
        head_ns = seconds * 10**9 + micros * 1000
        return ClockReading.from_round_trip(sent_ns, head_ns, received_ns, time.monotonic())


def _connects_once() -> Callable[[Any], None]:
    """Refuses the client's own reconnect: the Redis behind a new connection may have lost its data."""
    connections = count()

    def on_connect(connection: Any) -> None:
        if next(connections):
            raise ConnectionLostError("the connection was lost")
        connection.on_connect()

    return on_connect
