"""The nodes' samples as the router reads them, from a double of Redis; and connections that are stale."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from harness.monitor.backend_state import SILENT_AFTER_S, State
from harness.monitor.common import MonitorError
from harness.monitor.redis import RedisSettings
from harness.monitor.redis.reader import LatestSamples
from harness.monitor.sample import RpcSocket, Sample
from harness.router.config import Backend
from harness.router.http.metrics import Metrics
from harness.router.nodes import samples as node_samples
from harness.router.nodes.backends import StaleConnections
from harness.router.nodes.samples import NodeSamples
from tests.node_samples import node_sample

SECOND = 10**9


def sample(node: str, time_ns: int = SECOND, peer: str | None = None) -> Sample:
    return node_sample(time_ns, node, rpc=RpcSocket(listening=True, backlog=0, peer=peer))


class Redis:
    """Answers reads when the test lets it, with a sample of each node."""

    def __init__(self) -> None:
        self.reads = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.fails = False
        self.refused: dict[str, str] = {}

    async def read(self, nodes: Iterable[str], *, last: bool) -> LatestSamples:
        self.reads += 1
        await self.answers.wait()
        if self.fails:
            raise MonitorError("Redis at 127.0.0.1:6379: refused")
        latest = {node: None if node in self.refused else sample(node) for node in nodes}
        return LatestSamples(time_ns=SECOND, latest=latest, refused=self.refused)

    async def close(self) -> None:
        pass


@pytest.fixture
def redis(monkeypatch: pytest.MonkeyPatch) -> Redis:
    redis = Redis()
    monkeypatch.setattr("harness.router.nodes.samples.LatestReader", lambda settings: redis)
    monkeypatch.setattr(node_samples, "READ_EVERY_S", 0.01)
    monkeypatch.setattr(node_samples, "READ_WITHIN_S", 0.01)
    return redis


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock forward by some seconds."""
    now_s = 1000.0

    def forward(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr(node_samples, "time", SimpleNamespace(monotonic=lambda: now_s))
    return forward


def reading(metrics: Metrics | None = None) -> NodeSamples:
    settings = RedisSettings(address="127.0.0.1", username="u", password_file=Path("/none"))
    return NodeSamples(settings, ["a", "b"], metrics)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, dict[str, object]]]]:
    lines: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr(node_samples, "log", lambda event, **fields: lines.append((event, fields)))
    return lines


async def wait_for(true: Callable[[], object]) -> None:
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError


async def test_samples_are_read_before_the_first_request_and_then_again_and_again(redis: Redis) -> None:
    ours = reading()
    await ours.start()
    assert list(await ours.latest(["a"])) == ["a"]
    await wait_for(lambda: redis.reads > 2)
    await ours.close()


async def test_redis_that_hangs_costs_a_request_nothing_and_the_last_samples_age(
    redis: Redis, clock: Callable[[float], None]
) -> None:
    ours = reading()
    await ours.start()
    redis.answers.clear()
    await wait_for(lambda: redis.reads > 1)
    latest = ours.latest(["a"])
    with pytest.raises(StopIteration) as ended:  # it gives its result without waiting for anything
        latest.send(None)
    assert list(ended.value.value) == ["a"]
    clock(SILENT_AFTER_S + 1)
    assert await ours.latest(["a"]) == {}
    assert ours.states(["a"])["a"].state is State.SILENT
    assert ours.available_bytes("a") is None
    await ours.close()


async def test_samples_are_kept_while_redis_refuses_and_the_log_says_so_once(
    redis: Redis, logged: list[tuple[str, dict[str, object]]]
) -> None:
    ours = reading()
    await ours.start()
    redis.fails, before = True, redis.reads
    await wait_for(lambda: redis.reads > before + 3)
    assert list(await ours.latest(["a"])) == ["a"]
    assert [event for event, _ in logged] == ["node_samples_unavailable"]
    await ours.close()


async def test_caller_that_wants_a_new_read_gets_one(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_samples, "READ_EVERY_S", 3600)
    monkeypatch.setattr(node_samples, "READ_WITHIN_S", 10)
    ours = reading()
    await ours.start()
    reads = redis.reads
    assert list(await ours.latest(["a", "b"], now=True)) == ["a", "b"]
    assert redis.reads == reads + 1
    await ours.close()


async def test_node_whose_sample_is_refused_is_silent_counted_and_logged_once_a_minute(
    redis: Redis, logged: list[tuple[str, dict[str, object]]], clock: Callable[[float], None]
) -> None:
    redis.refused = {"a": "cpu_s: Input should be a finite number"}
    metrics = Metrics()
    ours = reading(metrics)
    await ours.start()
    await wait_for(lambda: redis.reads > 3)
    state = ours.states(["a", "b"])
    assert (state["a"].state, state["b"].state) == (State.SILENT, State.IDLE)
    assert state["a"].reason == "sample refused: cpu_s: Input should be a finite number"
    assert list(await ours.latest(["a", "b"])) == ["b"]
    refused = {"node": "a", "reason": redis.refused["a"]}
    assert [fields | {"level": 0} for _, fields in logged] == [refused | {"level": 0}]
    clock(61)
    await wait_for(lambda: len(logged) == 2)
    page, _ = metrics.page("")
    count = page.decode().partition('llama_router_samples_refused_total{node="a"} ')[2].split()[0]
    assert float(count) > 2
    assert 'llama_router_samples_refused_total{node="b"} 0.0' in page.decode()
    await ours.close()


async def test_refusal_ages_like_a_sample_while_redis_is_away(
    redis: Redis, clock: Callable[[float], None]
) -> None:
    redis.refused = {"a": "too long"}
    ours = reading()
    await ours.start()
    redis.fails, before = True, redis.reads
    await wait_for(lambda: redis.reads > before + 1)
    assert ours.states(["a"])["a"].reason == "sample refused: too long"
    clock(SILENT_AFTER_S + 1)
    state = ours.states(["a"])["a"]
    assert state.state is State.SILENT
    assert "refused" not in state.reason
    await ours.close()


async def test_without_redis_nothing_is_known_and_nothing_runs() -> None:
    ours = NodeSamples(None, ["a"])
    await ours.start()
    assert await ours.latest(["a"], now=True) == {}
    assert ours.states(["a"]) == {}
    await ours.close()


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
