"""Requests that a server fails: which are retried, where, and what the client gets."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from harness.monitor.sample import Sample, Unit
from harness.router.config import PoolServer, Route, RouterConfig
from harness.router.coordinator.manager import CoordinatorManager
from harness.router.coordinator.post_mortem import PostMortem
from harness.router.errors import RouterError
from harness.router.failures import Failures
from harness.router.http.metrics import Metrics
from harness.router.http.quotas import Quotas, RequestUsage
from harness.router.in_flight import SentRequest, digest_of
from harness.router.nodes.samples import NodeSamples
from harness.router.pool.crashes import UNIT, PoolCrashes
from harness.router.pool.pool import Pool
from harness.router.proxy.proxy import Proxy
from harness.router.proxy.upstream import UpstreamRequest
from harness.router.routing.resolver import RouteResolver
from harness.router.routing.rule import Decision
from starlette.requests import Request
from tests.node_samples import node_sample
from tests.unit.router.coordinator.fakes import Bench, bench, until

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

    @property
    def url(self) -> str:
        return str(self.http.make_url("")).rstrip("/")

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
        served = {"models": ["tiny"], "deployed": True}
        pool = [
            PoolServer.model_validate(
                {"node": s.name, "url": str(s.http.make_url("")), "kind": s.kind, **served}
            )
            for s in servers
        ]
        config = RouterConfig(address="127.0.0.1", request_timeout_s=0.3)
        self.failures, self.units = Failures(config, Metrics()), dict[str, Unit]()
        self.read = asyncio.Event()
        self.read.set()
        """Redis answers."""
        self.pool = Pool(pool, crashes=PoolCrashes(self._samples, self.failures))
        resolver, coordinator = cast("RouteResolver", Routed()), cast("CoordinatorManager", None)
        self.proxy = Proxy(config, resolver, self.pool, coordinator, session, self.failures)

    def use(self, at: Bench) -> None:
        """Send what follows to a coordinator."""
        config, resolver = RouterConfig(address="127.0.0.1"), cast("RouteResolver", ToCoordinator())
        self.proxy = Proxy(config, resolver, self.pool, at.manager, self.proxy._session, at.failures)

    async def _samples(self, nodes: Sequence[str]) -> dict[str, Sample]:
        await self.read.wait()
        known = {node: {UNIT: self.units[node]} for node in nodes if node in self.units}
        return {node: node_sample(time.time_ns(), node, units=units) for node, units in known.items()}

    def dies(self, server: "Server", number: int, delay_s: float = 0) -> Handler:
        """Break a request off, as when a signal ends the server; its node's samples say so."""

        async def die(request: web.Request) -> web.StreamResponse:
            await asyncio.sleep(delay_s)
            self.units[server.name] = Unit(
                active="activating", sub="auto-restart", main_pid=0, restarts=0, result="signal",
                exit_code="killed", exit_status=number, exited_ns=time.time_ns(),
            )  # fmt: skip
            return await server.break_off(request)

        return die

    async def send(
        self, path: str = CHAT, body: bytes = b"{}", usage: RequestUsage | None = None
    ) -> tuple[UpstreamRequest, bytes]:
        """One request to its end: what the client gets."""
        usage = usage or Quotas(RouterConfig(address="127.0.0.1"), 1, Metrics()).begin("one")
        state = {"request_id": body.decode(), "key": "key", "usage": usage}
        request = Request({"type": "http", "state": state, "headers": []})
        opened = await self.proxy.open(request, "tiny")
        async with AsyncExitStack() as stack:
            stack.push_async_exit(opened.resources)
            response = await self.proxy.send(opened, path, await usage.hold(body), stack)
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


async def refusal(work: Awaitable[object]) -> RouterError:
    with pytest.raises(RouterError) as raised:
        await work
    return raised.value


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
async def test_request_that_ends_the_only_pool_server_is_not_sent_nor_taken_again(
    setup: Setup, number: int
) -> None:
    setup.pool._servers[1].silent = True
    setup.first.handler = setup.dies(setup.first, number)
    error = await refusal(setup.send(body=b"poison"))
    assert (error.status, error.error_class) == (400, "poison_request")
    assert (await refusal(setup.send(body=b"poison"))).error_class == "poison_request"
    assert len(setup.first.requests) == 1
    (failure,) = setup.failures.history
    assert (failure.request_id, failure.key, failure.model) == ("poison", "key", "tiny")


async def test_request_that_ends_two_pool_servers_is_not_taken_again(setup: Setup) -> None:
    setup.failures._key_limit = 1
    for server in (setup.first, setup.second):
        server.handler = setup.dies(server, signal.SIGSEGV)
    assert (await refusal(setup.send(body=b"poison"))).error_class == "poison_request"
    assert len(setup.first.requests + setup.second.requests) == 2
    assert {failure.request_id for failure in setup.failures.history} == {"poison"}
    assert (await refusal(setup.send())).error_class == "key_suspended"


async def test_request_does_not_wait_for_samples_to_be_sent_to_another_server(setup: Setup) -> None:
    setup.failures._key_limit = 1
    setup.read = asyncio.Event()
    setup.first.handler = setup.dies(setup.first, signal.SIGSEGV)
    assert (await asyncio.wait_for(setup.send(body=b"fatal there"), 10))[1] == b'{"from": "second"}'
    assert not setup.failures.history
    setup.read.set()
    await setup.pool._supervisor.finished()
    assert [failure.request_id for failure in setup.failures.history] == ["fatal there"]
    assert (await setup.send(body=b"other"))[1] == b'{"from": "second"}', "one node's word suspends no key"


async def test_pool_server_that_is_killed_blames_no_request(setup: Setup) -> None:
    setup.first.handler = setup.dies(setup.first, signal.SIGKILL)
    assert (await setup.send())[1] == b'{"from": "second"}'
    assert list(setup.failures.history) == []


async def test_server_that_the_inventory_only_names_is_not_judged_by_a_unit(setup: Setup) -> None:
    config = setup.pool._servers[0].config
    setup.pool._servers[0].config = config.model_copy(update={"deployed": False})
    setup.first.handler = setup.dies(setup.first, signal.SIGSEGV)
    await setup.send()
    assert list(setup.failures.history) == []


async def test_requests_in_flight_at_one_end_are_sent_to_another_server_and_none_is_refused(
    setup: Setup,
) -> None:
    setup.first.handler = setup.dies(setup.first, signal.SIGSEGV, delay_s=0.1)
    busy = [setup.pool.use(setup.pool.pick("tiny", exclude=setup.first.url)) for _ in range(3)]  # type: ignore[arg-type]
    with busy[0], busy[1], busy[2]:
        older = asyncio.create_task(setup.send(body=b"older"))
        await until(lambda: setup.first.requests != [])
        for body in (await setup.send(body=b"newer"), await older):
            assert body[1] == b'{"from": "second"}'
    await setup.pool._supervisor.finished()
    (failure,) = setup.failures.history
    assert ("request older" in failure.message, "request newer" in failure.message) == (True, True)
    for name in (b"older", b"newer"):
        await setup.send(body=name)


async def test_node_that_reports_one_crash_after_the_other_blames_a_request_once(setup: Setup) -> None:
    setup.first.handler = setup.first.hang
    asked = asyncio.create_task(setup.send())
    await until(lambda: setup.first.requests != [])
    crashes, server = setup.pool._crashes, setup.pool._servers[0]
    assert crashes
    for _ in range(3):
        setup.units["first"] = Unit(
            active="active", sub="running", main_pid=1, restarts=0, result="success",
            exit_code="killed", exit_status=signal.SIGSEGV, exited_ns=time.time_ns(),
        )  # fmt: skip
        await crashes.look(server)
    assert len(setup.failures.history) == 1
    assert (await refusal(asked)).error_class == "request_timeout"


async def test_request_in_flight_at_two_losses_is_not_taken_again(setup: Setup) -> None:
    for server in (setup.first, setup.second):
        server.handler = setup.dies(server, signal.SIGKILL)
    assert (await refusal(setup.send(body=b"twice"))).error_class == "poison_request"
    assert (await refusal(setup.send(body=b"twice"))).error_class == "poison_request"
    assert len(setup.first.requests + setup.second.requests) == 2


async def test_request_of_an_earlier_end_is_not_blamed_for_a_crash_with_nothing_in_flight(
    setup: Setup,
) -> None:
    crashes, server = setup.pool._crashes, setup.pool._servers[0]
    assert crashes
    request = SentRequest("innocent", "key", "digest", "tiny")
    server.sent.add(request)
    for number in (signal.SIGKILL, signal.SIGSEGV):  # killed for memory, then it crashes while it loads
        setup.units["first"] = Unit(
            active="activating", sub="auto-restart", main_pid=0, restarts=0, result="signal",
            exit_code="killed", exit_status=number, exited_ns=time.time_ns(),
        )  # fmt: skip
        await crashes.look(server)
        server.sent.end(request)
        await asyncio.sleep(0.01)
    assert not setup.failures.history


async def test_poison_is_found_though_its_client_left(setup: Setup) -> None:
    setup.first.handler = setup.first.hang
    left = asyncio.create_task(setup.send(body=b"poison"))
    await until(lambda: setup.first.requests != [])
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    setup.first.handler = setup.dies(setup.first, signal.SIGSEGV)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.post(setup.first.http.make_url("/"))
    crashes = setup.pool._crashes
    assert crashes
    await crashes.look(setup.pool._servers[0])
    assert [failure.request_id for failure in setup.failures.history] == ["poison"]


class ToCoordinator:
    """A resolver that sends each model to the coordinator."""

    async def decide(self, model: str, *, record: bool = True) -> Decision:
        return Decision(Route.COORDINATOR, "test", model=model)


async def test_request_in_flight_at_two_losses_of_the_coordinator_is_not_taken_again(
    setup: Setup, tmp_path: Path
) -> None:
    at = bench(tmp_path, restart_budget=9)
    at.engine.url = setup.first.url

    async def die(request: web.Request) -> web.StreamResponse:
        at.engine.process.die(signal.SIGKILL)
        return await setup.first.break_off(request)

    setup.first.handler = die
    setup.use(at)
    for _ in range(2):
        assert (await refusal(setup.send(body=b"twice"))).error_class == "poison_request"
    assert len(setup.first.requests) == 2
    setup.first.handler = setup.first.answer
    assert (await setup.send(body=b"other"))[1] == b'{"from": "first"}'
    await at.manager.close()


async def test_key_that_is_suspended_has_no_model_loaded(setup: Setup, tmp_path: Path) -> None:
    at = bench(tmp_path)
    at.failures._key_limit = 1
    poison = SentRequest("poison", "key", "digest", "tiny")
    at.failures.blame(poison, "", [poison])
    setup.use(at)
    assert (await refusal(setup.send())).error_class == "key_suspended"
    assert not at.manager.starts
    await at.manager.close()


async def test_requests_that_wait_for_the_coordinator_keep_none_from_the_pool(setup: Setup) -> None:
    quotas = Quotas(RouterConfig(address="127.0.0.1", queue_per_key=1), 1, Metrics())
    with quotas.begin("one").queued():
        assert (await setup.send(usage=quotas.begin("one")))[1] == b'{"from": "first"}'


async def test_request_beside_the_one_that_ends_the_coordinator_is_answered_and_not_blamed(
    setup: Setup, tmp_path: Path
) -> None:
    at = bench(tmp_path, restart_budget=2)
    at.engine.url = setup.first.url
    setup.use(at)
    in_flight: list[web.Request] = []
    ends = asyncio.Event()

    async def die(request: web.Request) -> web.StreamResponse:
        """The first two are in flight at an end; of those that are sent again, the first ends it again."""
        in_flight.append(request)
        if len(in_flight) < 3:
            await ends.wait()
        elif len(in_flight) == 3:
            at.engine.process.die(signal.SIGSEGV)
        else:
            return await setup.first.answer(request)
        return await setup.first.break_off(request)

    real = PostMortem(RouterConfig(address="127.0.0.1"), NodeSamples(None), at.failures)
    at.post_mortem.diagnose = real.diagnose  # type: ignore[method-assign]
    setup.first.handler = die
    asked = [asyncio.create_task(setup.send(body=name)) for name in (b"one", b"two")]
    await until(lambda: len(in_flight) == 2)
    at.engine.process.die(signal.SIGSEGV)
    ends.set()
    results = await asyncio.gather(*asked, return_exceptions=True)
    refused = [error.error_class for error in results if isinstance(error, RouterError)]
    answered = [result for result in results if not isinstance(result, BaseException)]
    assert refused == ["poison_request"]
    assert [body for _, body in answered] == [b'{"from": "first"}']
    assert [bool(failure.request_id) for failure in at.failures.history] == [False, True]
    await at.manager.close()


async def test_streams_that_are_asked_for_again_are_sent_one_after_the_other_until_one_ends_the_coordinator(
    setup: Setup, tmp_path: Path
) -> None:
    at = bench(tmp_path, restart_budget=2)
    at.engine.url = setup.first.url
    setup.use(at)
    at.post_mortem.diagnose = PostMortem(  # type: ignore[method-assign]
        RouterConfig(address="127.0.0.1"), NodeSamples(None), at.failures
    ).diagnose
    begun, most = list[bytes](), 0

    async def stream(request: web.Request) -> web.StreamResponse:
        """The first end needs both streams; after that, the poison request ends the server alone."""
        nonlocal most
        begun.append(await request.read())
        most = max(most, len(begun)) if len(at.engine.processes) > 1 else 0
        process, response = (
            at.engine.process,
            web.StreamResponse(headers={"content-type": "text/event-stream"}),
        )
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        if len(at.engine.processes) == 1:
            await until(lambda: len(begun) == 2 or bool(process.exit))
        await asyncio.sleep(0.05)  # another one that is sent meanwhile is in flight with it
        begun.remove(b"poison" if b"poison" in begun else begun[0])
        if len(at.engine.processes) == 1 or await request.read() == b"poison":
            if not process.exit:
                process.die(signal.SIGSEGV)
            return await setup.first.break_off(request)
        return response

    setup.first.handler = stream
    for _ in range(2):
        asked = [setup.send(body=body) for body in (b"poison", b"innocent")]
        results = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(results[0], RouterError)
    assert not isinstance(results[1], BaseException), results[1]
    assert most == 1
    assert [failure.request_id for failure in at.failures.history] == [None, "poison"]
    assert (await refusal(setup.send(body=b"poison"))).error_class == "poison_request"
    assert len(at.engine.processes) == 3
    await at.manager.close()


async def test_suspect_waits_for_its_turn_without_keeping_a_server(setup: Setup, tmp_path: Path) -> None:
    at = bench(tmp_path)
    at.engine.url = setup.first.url
    setup.use(at)
    usage = Quotas(RouterConfig(address="127.0.0.1"), 1, Metrics()).begin("one")
    digests = [await digest_of(CHAT, await usage.hold(body)) for body in (b"one", b"two")]
    suspects = [SentRequest(digest, "key", digest, "tiny") for digest in digests]
    assert at.failures.culprit(suspects, suspects) is None
    async with at.failures.turn(suspects[0]):
        waits = asyncio.create_task(setup.send(body=b"two"))
        await until(lambda: bool(at.engine.processes))
        await asyncio.wait_for(at.ask("another"), 10)  # its model is loaded in place of the suspect's
        assert (await asyncio.wait_for(setup.send(body=b"no suspect"), 10))[1] == b'{"from": "first"}'
        assert len(setup.first.requests) == 1
    assert (await waits)[1] == b'{"from": "first"}'
    await at.manager.close()


async def test_request_beside_two_poison_requests_is_not_blamed(setup: Setup, tmp_path: Path) -> None:
    at = bench(tmp_path)
    at.engine.url = setup.first.url
    at.post_mortem.poison = SentRequest("another", "key", "digest", "tiny")

    async def die(request: web.Request) -> web.StreamResponse:
        at.engine.process.die(signal.SIGSEGV)
        return await setup.first.break_off(request)

    setup.first.handler = die
    setup.use(at)
    assert (await refusal(setup.send(body=b"beside"))).error_class == "coordinator_lost"
    at.post_mortem.poison = None
    setup.first.handler = setup.first.answer
    assert (await setup.send(body=b"beside"))[1] == b'{"from": "first"}'
    await at.manager.close()
