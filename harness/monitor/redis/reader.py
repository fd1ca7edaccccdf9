"""Reads from Redis each node's newest sample, and of a silent node the last one of its stream."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import redis.asyncio
from pydantic import BaseModel, ValidationError
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from harness.monitor.common import MonitorError
from harness.monitor.redis import FIELD, RedisSettings, connection_options, latest_key, stream_key
from harness.monitor.sample import Sample


class RedisUnavailableError(MonitorError):
    """Redis does not answer, or refuses the user; the message says which Redis and why."""


class LatestSamples(BaseModel):
    """The samples of all nodes at one moment."""

    time_ns: int
    """The clock of Redis, which is the head node's: UTC, nanoseconds."""
    latest: dict[str, Sample | None]
    """By node, its sample of the last seconds; None for a node that is silent."""
    last: dict[str, Sample | None] = {}
    """By silent node, the newest sample of its stream, however old; None for a node without a stream."""


def parse_sample(text: str | None) -> Sample | None:
    """A sample as a monitor wrote it; None for one that cannot be read.

    Unknown fields are ignored: nodes and readers are upgraded one after the other.
    """
    try:
        return None if text is None else Sample.model_validate_json(text, extra="ignore")
    except ValidationError:
        return None


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

    async def read(self, nodes: Iterable[str]) -> LatestSamples:
        """The newest samples of ``nodes``.

        Raises:
            RedisUnavailableError: Redis does not answer within seconds, or refuses.
        """
        names = list(nodes)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        for node in names:
            pipeline.get(latest_key(node))
            pipeline.xrevrange(stream_key(node), count=1)
        try:
            return _latest_samples(names, await pipeline.execute())
        except RedisError as error:
            message = str(error).rstrip(".") or type(error).__name__
            redis_name = f"Redis at {self._settings.address}:{self._settings.port}"
            raise RedisUnavailableError(f"{redis_name} as {self._settings.username}: {message}") from None

    async def close(self) -> None:
        """Close the connection."""
        await self._redis.aclose()


def _latest_samples(nodes: Sequence[str], answers: Sequence[Any]) -> LatestSamples:
    (seconds, micros), *rest = answers
    latest = {node: parse_sample(text) for node, text in zip(nodes, rest[::2], strict=True)}
    ends = {node: end for node, end in zip(nodes, rest[1::2], strict=True) if latest[node] is None}
    last = {node: parse_sample(end[0][1].get(FIELD)) if end else None for node, end in ends.items()}
    return LatestSamples(time_ns=seconds * 10**9 + micros * 1000, latest=latest, last=last)
