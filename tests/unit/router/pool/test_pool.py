"""The pool against doubles of Ollama and llama-server: what each has, which is asked, which cools down."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from harness.router.config import PoolServer
from harness.router.pool.pool import Pool
from harness.router.pool.server import (
    FIRST_COOL_DOWN_S,
    LONGEST_COOL_DOWN_S,
    PoolModel,
    PoolSnapshot,
    PoolTarget,
    ProbeError,
    ServerState,
    SilentServerError,
    canonical,
    check_main_loop,
    probe,
)
from harness.router.supervisor import TaskSupervisor
from tests.unit.router.coordinator.fakes import until

GIB = 1 << 30
INFO = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.embedding_length": 4096,
    "llama.feed_forward_length": 14336,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.vocab_size": 128256,
    "tokenizer.ggml.tokens": None,
}


@asynccontextmanager
async def server(routes: dict[str, Callable[[], Any]]) -> AsyncIterator[str]:
    """A double that answers each path with JSON; its URL."""

    async def answer(request: web.Request) -> web.Response:
        if request.path not in routes:
            return web.Response(status=404)
        body = routes[request.path]()
        return web.Response(text=body) if isinstance(body, str) else web.json_response(body)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


def ollama(**sizes: int) -> dict[str, Callable[[], Any]]:
    tags = [{"name": f"{name}:latest", "size": size, "digest": f"d-{name}"} for name, size in sizes.items()]
    return {
        "/api/tags": lambda: {"models": tags},
        "/api/ps": lambda: {"models": [{"name": tags[0]["name"], "size": GIB}]},
        "/api/show": lambda: {"model_info": INFO, "details": {"format": "gguf"}},
    }


def pool(*urls: str, **given: Any) -> Pool:
    return Pool(
        [PoolServer(node=f"n{n}", url=url, **({"kind": "ollama"} | given)) for n, url in enumerate(urls)]
    )


def nothing_known(node: str) -> int | None:
    return None


async def test_ollama_tells_its_models_what_is_in_memory_and_what_each_takes() -> None:
    async with server(ollama(big=40 * GIB, small=GIB)) as url, aiohttp.ClientSession() as session:
        servers = pool(url)
        await servers.start(session)
        try:
            assert servers.models == ["big:latest", "small:latest"]
            (offer,) = servers.offers("big", nothing_known)
            assert (offer.node, offer.certain, offer.capacity_bytes) == ("n0", "has it in memory", None)
            (other,) = servers.offers("small", lambda node: 3 * GIB)
            assert (other.certain, other.capacity_bytes) == (None, 4 * GIB)
            need = servers.need("small", 2048)
            assert need
            assert need.layers == 33
            # 32 layers, 8 heads of 128 elements, keys and values, two bytes each, 2048 tokens.
            assert need.bytes > GIB + 32 * 8 * 128 * 2 * 2 * 2048
            assert servers.offers("absent", nothing_known) == ()
        finally:
            await servers.close()


async def test_openai_server_has_what_it_lists_and_holds_it_in_memory() -> None:
    routes = {"/v1/models": lambda: {"data": [{"id": "tiny"}]}}
    async with server(routes) as url, aiohttp.ClientSession() as session:
        servers = pool(url, kind="openai")
        await servers.start(session)
        (offer,) = servers.offers("tiny", nothing_known)
        await servers.close()
    assert offer.certain == "serves it"
    assert not servers.offers("tiny:latest", nothing_known)


async def test_description_of_an_unchanged_model_is_not_asked_for_again() -> None:
    routes, shown = ollama(small=GIB), []
    show = routes["/api/show"]
    routes["/api/show"] = lambda: shown.append(1) or show()
    async with server(routes) as url, aiohttp.ClientSession() as session:
        target = PoolTarget("n", url, None, "ollama")
        first = await probe(session, target)
        second = await probe(session, target, first)
    assert first == second
    assert len(shown) == 1


@pytest.mark.parametrize(
    "routes",
    [
        {},
        {"/api/tags": lambda: [], "/api/ps": lambda: {"models": []}},
        {"/api/tags": lambda: {"models": [{"size": 1}]}, "/api/ps": lambda: {"models": []}},
        {"/api/tags": lambda: {"models": [{"name": "m", "size": "huge"}]}, "/api/ps": lambda: {"models": []}},
        {"/api/tags": lambda: "[" * 100_000, "/api/ps": lambda: {"models": []}},
    ],
    ids=["nothing", "a list", "no name", "no number", "nested too deeply"],
)
async def test_answer_of_another_shape_is_a_failure_of_the_server(
    routes: dict[str, Callable[[], Any]],
) -> None:
    async with server(routes) as url, aiohttp.ClientSession() as session:
        with pytest.raises(ProbeError):
            await probe(session, PoolTarget("n", url, None, "ollama"))


async def test_server_that_is_away_at_the_start_cools_down_and_its_listed_models_stay() -> None:
    servers = pool("http://127.0.0.1:9", models=["m"])
    async with aiohttp.ClientSession() as session:
        await servers.start(session)
        await servers.close()
    assert servers.models == ["m"]
    assert servers.state[0]["set_aside_s"] > 0
    assert servers.pick("m"), "it is all there is: asked all the same"


async def test_probes_of_a_server_go_on_after_an_error_of_the_router_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes: list[Exception | PoolSnapshot] = [AssertionError("a bug"), PoolSnapshot((PoolModel("m"),))]

    async def probe_once(*given: object) -> PoolSnapshot:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("harness.router.pool.pool.probe", probe_once)
    failures = 0

    def count() -> None:
        nonlocal failures
        failures += 1

    servers = Pool([PoolServer(node="n", url="http://a")], TaskSupervisor(count))
    async with aiohttp.ClientSession() as session:
        await servers.start(session, patience_s=5)
        await servers.close()
    assert (servers.models, failures) == (["m"], 1)


def test_server_with_the_model_in_memory_and_the_fewest_requests_is_asked() -> None:
    servers = pool("http://a", "http://b", "http://c")
    a, b, c = servers._servers
    for state in (a, b, c):
        state.snapshot = PoolSnapshot((PoolModel("m:latest"),))
    assert servers.pick("m") == a.target
    with servers.use(a.target):
        assert servers.pick("m") == b.target
        with servers.use(b.target), servers.use(c.target), servers.use(c.target):
            assert servers.pick("m") in (a.target, b.target)
        c.snapshot = PoolSnapshot((PoolModel("m:latest"),), frozenset({"m:latest"}))
        with servers.use(c.target):
            assert servers.pick("m") == c.target
    assert servers.pick("m", ["http://b"]) == b.target
    assert servers.pick("m", ["http://b"], exclude="http://b") is None
    servers.failed(c.target, "refused")
    assert servers.pick("m") == a.target
    servers.succeeded(c.target)
    assert servers.pick("m") == c.target


def test_failing_server_cools_down_twice_as_long_each_time_and_at_most_a_minute() -> None:
    state = ServerState(PoolServer(node="a", url="http://a", kind="ollama"), None)
    pauses = []
    for _ in range(9):
        state.failed(100.0, "refused", jitter=lambda: 0.0)
        pauses.append(state.cooling_until - 100.0)
    assert pauses[:4] == [
        FIRST_COOL_DOWN_S,
        2 * FIRST_COOL_DOWN_S,
        4 * FIRST_COOL_DOWN_S,
        8 * FIRST_COOL_DOWN_S,
    ]
    assert pauses[-1] == LONGEST_COOL_DOWN_S
    state.succeeded()
    assert state.cooling_until < 100.0


def test_configured_memory_wins_over_what_the_monitor_shows() -> None:
    state = ServerState(PoolServer(node="a", url="http://a", memory_bytes=GIB), None)
    assert state.capacity_bytes(5 * GIB) == state.capacity_bytes(None) == GIB


@pytest.mark.parametrize(
    ("kind", "name", "full"),
    [
        ("ollama", "smollm2", "smollm2:latest"),
        ("ollama", "smollm2:135m", "smollm2:135m"),
        ("ollama", "host:5000/user/m", "host:5000/user/m:latest"),
        ("openai", "tiny", "tiny"),
    ],
)
def test_name_without_a_tag_is_the_latest_of_ollama(kind: Any, name: str, full: str) -> None:
    assert canonical(kind, name) == full


async def test_server_whose_main_loop_answers_nothing_is_not_asked_until_it_answers() -> None:
    gate = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/slots":
            await gate.wait()
        return web.json_response({"data": [{"id": "tiny"}]})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as hung, aiohttp.ClientSession() as session:
        url = str(hung.make_url("")).rstrip("/")
        servers = Pool([PoolServer(node="n", url=url, kind="openai")], silent_s=0.05)
        await servers.start(session)
        (state,) = servers._servers
        await until(lambda: state.silent)
        assert servers.pick("tiny") is None
        error = servers.why_none("tiny")
        assert error
        assert (error.status, error.error_class) == (503, "pool_unreachable")
        assert "its main loop has answered nothing for 0.05 s" in error.message
        assert servers.state[0]["set_aside_s"] > 0
        gate.set()
        await until(lambda: not state.silent)
        assert servers.pick("tiny") == state.target
        assert servers.why_none("tiny") is None
        await servers.close()


@pytest.mark.parametrize("kind", ["openai", "ollama"])
async def test_server_without_slots_is_no_silent_one(kind: Any) -> None:
    async with server({"/v1/models": lambda: {"data": []}}) as url, aiohttp.ClientSession() as session:
        await check_main_loop(session, PoolTarget("n", url, None, kind), 5)


async def test_server_that_is_not_there_is_no_silent_one() -> None:
    async with aiohttp.ClientSession() as session:
        await check_main_loop(session, PoolTarget("n", "http://127.0.0.1:9", None), 5)


async def test_server_that_takes_connections_and_answers_nothing_is_not_asked() -> None:
    """As a process that is stopped: its kernel takes the connections."""
    with socket.create_server(("127.0.0.1", 0)) as stopped:
        url = f"http://127.0.0.1:{stopped.getsockname()[1]}"
        async with aiohttp.ClientSession() as session:
            with pytest.raises(SilentServerError, match=r"answered nothing for 0\.05 s"):
                await check_main_loop(session, PoolTarget("n", url, None), 0.05)
