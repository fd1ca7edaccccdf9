"""One connection to a node's stream in Redis. Every trouble is an error; none is mended in silence."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import ResponseError
from redis.retry import Retry

from harness.monitor.redis.backlog import Entry
from harness.monitor.redis.offset import Reading, reading
from harness.monitor.redis.settings import (
    FIELD,
    LATEST_TTL_MS,
    STREAM_SAMPLES,
    RedisSettings,
    connection_options,
    entry_id,
    entry_ms,
    latest_key,
    stream_key,
)

_NOT_NEWER = "equal or smaller"


class StreamLink:
    """Writes to one node's stream and latest state. Any of its calls may raise redis's RedisError."""

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._redis.close()

    def last_ms(self) -> int:
        """Time of the stream's last sample in milliseconds; 0 for a stream that holds none."""
        end = self._redis.xrevrange(self._stream, count=1)
        return entry_ms(end[0][0]) if end else 0

    def send(self, entries: Sequence[Entry], newest: Entry) -> None:
        """Append samples and show the newest as the node's latest state: all of it, or nothing.

        A sample that is not newer than the stream's last is refused by Redis: it is there already.

        Args:
            entries: samples in order of time.
            newest: the last sample taken, whether or not it is one of them.
        """
        pipeline = self._redis.pipeline(transaction=True)
        for entry in entries:
            pipeline.xadd(
                self._stream,
                {FIELD: entry.line},
                id=entry_id(entry.time_ns),
                maxlen=STREAM_SAMPLES,
                approximate=True,
            )
        fresh_ms = LATEST_TTL_MS - max(0, time.time_ns() // 1_000_000 - newest.ms)
        if fresh_ms > 0:
            pipeline.set(self._latest, newest.line, px=fresh_ms)
        for answer in pipeline.execute(raise_on_error=False):
            if isinstance(answer, ResponseError) and _NOT_NEWER not in str(answer):
                raise answer

    def forget(self) -> None:
        """Remove the stream."""
        self._redis.delete(self._stream)

    def read_clock(self) -> Reading:
        """How far our clock is from that of Redis."""
        before_ns = time.time_ns()
        seconds, micros = self._redis.time()
        after_ns = time.time_ns()
        return reading(before_ns, seconds * 10**9 + micros * 1000, after_ns, time.monotonic())


def _connects_once() -> Callable[[Any], None]:
    """Refuses what the client would do by itself: connect again, to a Redis that may have begun anew."""
    used: list[bool] = []

    def on_connect(connection: Any) -> None:
        if used:
            raise LostError("the connection was lost")
        used.append(True)
        connection.on_connect()

    return on_connect
