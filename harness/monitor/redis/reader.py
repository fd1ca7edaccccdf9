"""What Redis holds of each node: its newest sample, and when a silent one was last heard of."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import redis
import redis.asyncio
from pydantic import BaseModel, ValidationError
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from harness.monitor.config_file import MonitorError
from harness.monitor.redis.settings import FIELD, RedisSettings, connection_options, latest_key, stream_key
from harness.monitor.sample import Sample


class RedisAwayError(MonitorError):
    """Redis does not answer, or does not admit us; says where and why."""


class Heard(BaseModel):
    """What Redis says of all nodes at one moment."""

    time_ns: int
    """Redis's own clock, which is the head node's: UTC, nanoseconds."""
    latest: dict[str, Sample | None]
    """By node its sample of the last seconds; None for a node that is silent."""
    last: dict[str, Sample | None] = {}
    """By silent node the newest sample of its stream, however old; None for a node never heard of."""


def parse_sample(text: str | None) -> Sample | None:
    """A sample as a monitor wrote it; None for one that cannot be read.

    Fields that are not known here are passed over: nodes and readers are upgraded one after the other.
    """
    if text is None:
        return None
    try:
        return Sample.model_validate_json(text, extra="ignore")
    except ValidationError:
        return None


class LatestReader:
    """Keeps one connection; asks everything in one round trip."""

    def __init__(self, settings: RedisSettings) -> None:
        """Does not connect yet.

        Raises:
            MonitorError: the password cannot be read.
        """
        self._settings = settings
        self._redis = redis.Redis(**connection_options(settings), retry=Retry(NoBackoff(), 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, nodes: Iterable[str]) -> Heard:
        """What is known of ``nodes`` now.

        Raises:
            RedisAwayError: Redis does not answer within seconds, or refuses.
        """
        names = list(nodes)
        pipeline = self._redis.pipeline(transaction=False)
        _ask(pipeline, names)
        try:
            return _heard(names, pipeline.execute())
        except RedisError as error:
            raise _away(self._settings, error) from None

    def close(self) -> None:
        """Let go of the connection."""
        self._redis.close()


class AsyncLatestReader:
    """The same for a program that must not wait."""

    def __init__(self, settings: RedisSettings) -> None:
        """Does not connect yet.

        Raises:
            MonitorError: the password cannot be read.
        """
        self._settings = settings
        self._redis = redis.asyncio.Redis(**connection_options(settings), retry=AsyncRetry(NoBackoff(), 0))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def read(self, nodes: Iterable[str]) -> Heard:
        """What is known of ``nodes`` now.

        Raises:
            RedisAwayError: Redis does not answer within seconds, or refuses.
        """
        names = list(nodes)
        pipeline = self._redis.pipeline(transaction=False)
        _ask(pipeline, names)
        try:
            return _heard(names, await pipeline.execute())
        except RedisError as error:
            raise _away(self._settings, error) from None

    async def close(self) -> None:
        """Let go of the connection."""
        await self._redis.aclose()


def read_latest(settings: RedisSettings, nodes: Iterable[str]) -> dict[str, Sample | None]:
    """Each node's sample of the last seconds; None for one that is silent.

    Raises:
        MonitorError: Redis does not answer or refuses, or its password cannot be read.
    """
    with LatestReader(settings) as reader:
        return reader.read(nodes).latest


async def read_latest_async(settings: RedisSettings, nodes: Iterable[str]) -> dict[str, Sample | None]:
    """The same for a program that must not wait; one that asks often keeps an AsyncLatestReader.

    Raises:
        MonitorError: Redis does not answer or refuses, or its password cannot be read.
    """
    async with AsyncLatestReader(settings) as reader:
        return (await reader.read(nodes)).latest


def _ask(pipeline: Any, nodes: Sequence[str]) -> None:
    pipeline.time()
    for node in nodes:
        pipeline.get(latest_key(node))
        pipeline.xrevrange(stream_key(node), count=1)


def _heard(nodes: Sequence[str], answers: Sequence[Any]) -> Heard:
    (seconds, micros), *rest = answers
    latest = {node: parse_sample(text) for node, text in zip(nodes, rest[::2], strict=True)}
    ends = {node: end for node, end in zip(nodes, rest[1::2], strict=True) if latest[node] is None}
    last = {node: parse_sample(end[0][1].get(FIELD)) if end else None for node, end in ends.items()}
    return Heard(time_ns=seconds * 10**9 + micros * 1000, latest=latest, last=last)


def _away(settings: RedisSettings, error: RedisError) -> RedisAwayError:
    said = str(error).rstrip(".") or type(error).__name__
    return RedisAwayError(f"Redis at {settings.address}:{settings.port} as {settings.username}: {said}")
