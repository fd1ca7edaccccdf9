"""The nodes' samples as the router reads them, from a double of Redis; and connections that are stale."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest
from harness.monitor.common import MonitorError
from harness.monitor.redis import RedisSettings
from harness.monitor.sample import Memory, RpcSocket, Sample, Source
from harness.router.config import Backend
from harness.router.nodes.backends import StaleConnections
from harness.router.nodes.samples import NodeSamples

MEMORY = Memory(
    source=Source.PROC,
    total_bytes=8,
    available_bytes=4,
    used_bytes=0,
    cache_bytes=0,
    swap_total_bytes=0,
    swap_used_bytes=0,
    major_faults=0,
)


def sample(node: str, time_ns: int = 1, peer: str | None = None) -> Sample:
    rpc = RpcSocket(listening=True, backlog=0, peer=peer)
    return Sample(time_ns=time_ns, node=node, memory=MEMORY, cpu_s=0, rpc=rpc)


class Redis:
    """Answers reads when the test lets it, with a sample of each node."""

    def __init__(self) -> None:
        self.reads = 0
        self.answers = asyncio.Event()
        self.fails = False

    async def read(self, nodes: Iterable[str]) -> Any:
        self.reads += 1
        await self.answers.wait()
        if self.fails:
            raise MonitorError("Redis at 127.0.0.1:6379: refused")
        return type("Read", (), {"time_ns": 1, "latest": {node: sample(node) for node in nodes}})


@pytest.fixture
def redis(monkeypatch: pytest.MonkeyPatch) -> Redis:
    redis = Redis()
    monkeypatch.setattr("harness.router.nodes.samples.LatestReader", lambda settings: redis)
    return redis


def samples() -> NodeSamples:
    settings = RedisSettings(address="127.0.0.1", username="u", password_file=Path("/none"))
    return NodeSamples(settings)


async def test_request_that_comes_during_a_read_gets_its_result(redis: Redis) -> None:
    ours = samples()
    requests = [asyncio.create_task(ours.latest(["a"])) for _ in range(3)]
    await asyncio.sleep(0)
    redis.answers.set()
    assert [list(latest) for latest in await asyncio.gather(*requests)] == [["a"]] * 3
    assert redis.reads == 1
    assert list(await ours.latest(["a", "b"])) == ["a", "b"], "a new node is read at once"


async def test_request_that_comes_while_redis_is_away_does_not_wait_for_it(redis: Redis) -> None:
    ours, redis.fails = samples(), True
    redis.answers.set()
    assert await ours.latest(["a"]) == {}
    redis.answers.clear()
    reading = asyncio.create_task(ours.latest(["a"], now=True))
    await asyncio.sleep(0)
    assert await asyncio.wait_for(ours.latest(["a"], now=True), 1) == {}
    redis.fails = False
    redis.answers.set()
    assert list(await reading) == ["a"]


class Nodes:
    """Samples of one backend that serves ``peer``, each two seconds newer than the one before."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._time_ns = 0

    async def latest(self, nodes: list[str]) -> dict[str, Sample]:
        self._time_ns += 2 * 10**9
        return {node: sample(node, self._time_ns, self._peer) for node in nodes}


@pytest.mark.parametrize(("peer", "stale"), [("10.9.9.9:40000", True), ("10.8.8.8:40000", False)])
async def test_backend_that_serves_a_connection_which_is_gone_here_is_stale(peer: str, stale: bool) -> None:
    backend = Backend(node="a", endpoint="10.9.9.10:50052", memory_bytes=1)
    problems = await StaleConnections(cast("NodeSamples", Nodes(peer)), "10.9.9.9").find([backend])
    assert list(problems) == (["a"] if stale else [])
    assert all(peer in problem for problem in problems.values())
