"""Reads from Redis each node's newest sample, and of a silent node the last one of its stream.

A node can write anything below its keys. A bad sample is refused only for its own node.
"""

from collections.abc import Iterable
from typing import Any, Self

import redis.asyncio
from pydantic import BaseModel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from harness.monitor.backend_state import SILENT_AFTER_S, age_s
from harness.monitor.common import MonitorError
from harness.monitor.redis import FIELD, RedisSettings, connection_options, latest_key, stream_key
from harness.monitor.sample import MAX_SAMPLE_BYTES, RefusedSampleError, Sample, check_time, parse_sample


class RedisUnavailableError(MonitorError):
    """Redis does not answer, or refuses the user; the message says which Redis and why."""


class LatestSamples(BaseModel):
    """The samples of all nodes at one moment."""

    time_ns: int
    """The clock of Redis, which is the head node's: UTC, nanoseconds."""
    latest: dict[str, Sample | None]
    """By node, its sample of the last seconds; None for a node that is silent or whose sample is refused."""
    last: dict[str, Sample | None] = {}
    """By silent node, the newest sample of its stream, however old; None for a node without a stream."""
    refused: dict[str, str] = {}
    """By node, why its sample is refused."""


class LatestReader:
    """Keeps one connection; reads all nodes in one round trip."""

    def __init__(self, settings: RedisSettings) -> None:
        """Does not connect yet.

        Raises:
            MonitorError: the password cannot be read.
        """
        self._settings = settings
        self._redis = redis.asyncio.Redis(**connection_options(settings), retry=Retry(NoBackoff(), 0))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def read(self, nodes: Iterable[str], *, last: bool = True) -> LatestSamples:
        """The newest samples of ``nodes``.

        Args:
            last: read the streams of silent nodes too.

        Raises:
            RedisUnavailableError: Redis does not answer within seconds, or refuses.
        """
        names = list(nodes)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        for node in names:
            # One byte more than a sample may have: this shows a longer one without reading all of it.
            pipeline.getrange(latest_key(node), 0, MAX_SAMPLE_BYTES)
        try:
            (seconds, micros), *values = (
                _unless_failed(answer) for answer in await pipeline.execute(raise_on_error=False)
            )
        except RedisError as error:
            message = str(error).rstrip(".") or type(error).__name__
            redis_name = f"Redis at {self._settings.address}:{self._settings.port}"
            raise RedisUnavailableError(f"{redis_name} as {self._settings.username}: {message}") from None
        read = LatestSamples(time_ns=seconds * 10**9 + micros * 1000, latest=dict.fromkeys(names))
        for node, value in zip(names, values, strict=True):
            sample = _believed(read, node, value)
            if sample and age_s(sample, read.time_ns) <= SILENT_AFTER_S:
                read.latest[node] = sample
            if last and not read.latest[node] and node not in read.refused:
                read.last[node] = _believed(read, node, await self._end_of_stream(node))
        return read

    async def _end_of_stream(self, node: str) -> Any:
        """The newest entry of a node's stream, or the error where it cannot be read (it may be too large)."""
        try:
            end: Any = await self._redis.xrevrange(stream_key(node), count=1)
        except RedisError as error:
            return error
        return end[0][1].get(FIELD.encode(), b"{}") if end else b""

    async def close(self) -> None:
        """Close the connection."""
        await self._redis.aclose()


def _unless_failed(answer: Any) -> Any:
    """An answer of Redis; also the error of a single node, which keeps something else than a text there."""
    of_one_node = isinstance(answer, ResponseError) and str(answer).startswith("WRONGTYPE")
    if isinstance(answer, RedisError) and not of_one_node:
        raise answer
    return answer


def _believed(read: LatestSamples, node: str, value: Any) -> Sample | None:
    """The sample that Redis has of a node; None where there is none, or where it is refused."""
    if isinstance(value, RedisError):
        read.refused[node] = f"its key cannot be read: {value}"
        return None
    if not value:
        return None
    try:
        sample = parse_sample(value, node)
        check_time(sample.head_time_ns, read.time_ns)
    except RefusedSampleError as error:
        read.refused[node] = str(error)
        return None
    return sample
