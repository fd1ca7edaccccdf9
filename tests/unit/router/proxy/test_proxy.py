"""Requests that a server fails: which are retried, where, and what the client gets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, cast

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from harness.router.config import PoolServer, Route, RouterConfig
from harness.router.coordinator.manager import CoordinatorManager
from harness.router.errors import RouterError
from harness.router.pool.pool import Pool
from harness.router.proxy.proxy import Proxy
from harness.router.proxy.upstream import UpstreamRequest
from harness.router.routing.resolver import RouteResolver
from harness.router.routing.rule import Decision
from starlette.requests import Request

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
CHAT = "/v1/chat/completions"


class Server:
    """A model server of the pool, whose behaviour the test sets."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind
        self.requests: list[str] = []
        self.handler: Handler = self.answer
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self.http = TestServer(app)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path)
        return await self.handler(request)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"from": self.name})

    async def hang(self, request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    async def break_off(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async def load(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": "Loading model"}, status=503)

    async def stream_and_break_off(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.close()
        return response


class Routed:
    """A resolver that sends each model to the pool."""

    async def decide(self, model: str, *, record: bool = True) -> Decision:
        return Decision(Route.POOL, "test")


class Setup:
    """A proxy over two pool servers, the first of which is asked first."""

    def __init__(self, session: aiohttp.ClientSession, servers: list[Server]) -> None:
        self.first, self.second = servers
        pool = [
            PoolServer.model_validate(
                {"node": s.name, "url": str(s.http.make_url("")), "kind": s.kind, "models": ["tiny"]}
            )
            for s in servers
        ]
        self.pool = Pool(pool)
        config = RouterConfig(address="127.0.0.1", request_timeout_s=0.3)
        resolver, coordinator = cast("RouteResolver", Routed()), cast("CoordinatorManager", None)
        self.proxy = Proxy(config, resolver, self.pool, coordinator, session)

    async def send(self, path: str = CHAT) -> tuple[UpstreamRequest, bytes]:
        """One request to its end: what the client gets."""
        request = Request({"type": "http", "state": {}, "headers": []})
        opened = await self.proxy.open(request, "tiny")
        async with AsyncExitStack() as stack:
            stack.push_async_exit(opened.resources)
            response = await self.proxy.send(opened, path, b"{}", stack)
            return opened, await self.proxy.read_all(opened, response)

    def in_flight(self) -> list[Any]:
        return [server["in_flight"] for server in self.pool.state]


@pytest_asyncio.fixture
async def setup(request: pytest.FixtureRequest) -> AsyncIterator[Setup]:
    kinds = getattr(request, "param", ("openai", "openai"))
    servers = [Server(name, kind) for name, kind in zip(("first", "second"), kinds, strict=True)]
    async with AsyncExitStack() as stack:
        for server in servers:
            await server.http.start_server()
            stack.push_async_callback(server.http.close)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        setup = Setup(session, servers)
        yield setup
        assert setup.in_flight() == [0, 0]


async def test_request_that_a_server_answers_is_sent_once(setup: Setup) -> None:
    opened, body = await setup.send()
    assert body == b'{"from": "first"}'
    assert opened.headers == {"x-llama-route": "pool", "x-llama-route-reason": "test"}
    assert setup.second.requests == []


@pytest.mark.parametrize("failure", ["break_off", "load"])
async def test_request_is_sent_to_another_server_when_one_fails(setup: Setup, failure: str) -> None:
    setup.first.handler = getattr(setup.first, failure)
    opened, body = await setup.send()
    assert body == b'{"from": "second"}'
    assert opened.headers["x-llama-attempt"] == "2"
    await setup.send()
    assert len(setup.first.requests) == 1  # it is set aside


async def test_request_is_retried_once(setup: Setup) -> None:
    setup.first.handler, setup.second.handler = setup.first.break_off, setup.second.break_off
    with pytest.raises(RouterError, match="pool server of second") as raised:
        await setup.send()
    assert (raised.value.status, raised.value.error_class) == (502, "pool_unreachable")
    assert len(setup.first.requests + setup.second.requests) == 2


async def test_busy_answer_of_the_last_server_is_passed_on(setup: Setup) -> None:
    setup.first.handler, setup.second.handler = setup.first.load, setup.second.load
    _, body = await setup.send()
    assert body == b'{"error": "Loading model"}'


async def test_request_that_timed_out_is_not_sent_to_another_server(setup: Setup) -> None:
    setup.first.handler = setup.first.hang
    with pytest.raises(RouterError) as raised:
        await setup.send()
    assert (raised.value.status, raised.value.error_class) == (504, "request_timeout")
    assert setup.second.requests == []


async def test_stream_that_breaks_off_is_not_retried(setup: Setup) -> None:
    setup.first.handler = setup.first.stream_and_break_off
    with pytest.raises(RouterError, match="broke off") as raised:
        await setup.send()
    assert raised.value.status == 502
    assert setup.second.requests == []


@pytest.mark.parametrize("setup", [("ollama", "openai")], indirect=True)
async def test_body_of_the_ollama_api_is_not_sent_to_a_server_that_speaks_openai(setup: Setup) -> None:
    setup.first.handler = setup.first.break_off
    with pytest.raises(RouterError):
        await setup.send("/api/chat")
    assert setup.second.requests == []
    _, body = await setup.send(CHAT)
    assert body == b'{"from": "second"}'
