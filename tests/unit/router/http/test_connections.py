"""Connections: kept, silent, pipelined, too many, and with a client that does not read."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from harness.router.config import RouterConfig
from harness.router.http.disconnect import ClientWatch
from harness.router.http.metrics import Metrics
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from tests.unit.router.serving import ADMIN_KEY, KEY, Connection, exchange, serve_app

BEARER = b"host: x\r\nauthorization: Bearer " + KEY.encode() + b"\r\n"
GET = b"GET /v1/models HTTP/1.1\r\n" + BEARER + b"\r\n"
WAIT = b"GET /v1/wait HTTP/1.1\r\n" + BEARER + b"\r\n"
ENDLESS = GET.replace(b"models", b"endless")
LONG = GET.replace(b"models", b"long")
ADMIN = b"GET /admin/queue HTTP/1.1\r\nhost: x\r\nauthorization: Bearer " + ADMIN_KEY.encode() + b"\r\n\r\n"
STRANGER = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
LONG_BODY = 200_000


class App:
    """Answers at once; ``wait``: after ``go``; ``endless``: without an end; ``long``: 200 kB."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.started = asyncio.Semaphore(0)
        self.given_up = asyncio.Semaphore(0)
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/v1/wait":
            self.started.release()
            await self._watched(scope, receive, self.go.wait())
        if path == "/v1/body":
            self.started.release()
            await Request(scope, receive).body()
        if path != "/v1/endless":
            body = {"path": path, "more": "x" * LONG_BODY if path == "/v1/long" else ""}
            await JSONResponse(body)(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await self._watched(scope, receive, self._send_for_ever(send))

    async def _watched(self, scope: Scope, receive: Receive, work: Any) -> None:
        try:
            await ClientWatch.of(scope, receive).guard(work)
        except Exception:
            self.given_up.release()
            raise

    async def _send_for_ever(self, send: Send) -> None:
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)

    def count(self, limit: str) -> float | None:
        return self.metrics.registry.get_sample_value("llama_router_limits_reached_total", {"limit": limit})

    def open_connections(self) -> float | None:
        return self.metrics.registry.get_sample_value("llama_router_connections")


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[tuple[App, int]]:
    app = App()
    async with serve_app(app, app.metrics, **settings) as port:
        yield app, port


async def within(work: Any) -> None:
    async with asyncio.timeout(10):
        await work


async def all_closed(app: App) -> None:
    async with asyncio.timeout(10):
        while app.open_connections():  # noqa: ASYNC110 - a gauge tells nobody
            await asyncio.sleep(0.01)


def test_connection_is_kept_for_as_long_as_nginx_keeps_it() -> None:
    assert RouterConfig(address="127.0.0.1").keep_alive_s == 75


@pytest.mark.parametrize("before", [b"", GET], ids=["never used", "kept"])
async def test_connection_that_asks_nothing_is_closed_without_a_word(before: bytes) -> None:
    async with running(keep_alive_s=1, head_timeout_s=0.1) as (_, port), Connection.to(port) as client:
        if before:
            client.send(before)
            assert (await client.response())[0] == 200
        assert await client.closed()


async def test_refused_body_is_read_on_and_is_no_head() -> None:
    async with running(head_limit_bytes=4096) as (_, port), Connection.to(port) as client:
        client.send(STRANGER + b"content-length: 199981\r\n\r\n" + b"{")
        status, headers, _ = await client.response()
        assert (status, headers["connection"]) == (401, "close")
        for _ in range(20):
            client.send(b"a" * 9_999)
            await client.drain()
        assert await client.closed()


async def test_refusal_arrives_though_the_whole_body_is_sent_first() -> None:
    async with running() as (_, port), Connection.to(port) as client:
        client.send(STRANGER + b"content-length: 8000000\r\n\r\n" + b"a" * 8_000_000)
        await client.drain()
        assert (await client.response())[0] == 401
        assert await client.closed()


async def test_refused_body_that_does_not_come_ends_the_connection() -> None:
    async with running(head_timeout_s=0.1) as (_, port), Connection.to(port) as client:
        client.send(STRANGER + b"content-length: 200000\r\n\r\n")
        assert (await client.response())[0] == 401
        assert await client.closed()


async def test_refusal_of_a_body_that_has_arrived_keeps_the_connection() -> None:
    async with running() as (_, port), Connection.to(port) as client:
        client.send(STRANGER + b"content-length: 2\r\n\r\n{}")
        status, headers, _ = await client.response()
        assert (status, headers.get("connection")) == (401, None)
        client.send(GET)
        assert (await client.response())[0] == 200


async def test_client_that_asks_first_is_not_told_to_send_what_is_refused() -> None:
    async with running() as (_, port), Connection.to(port) as client:
        client.send(STRANGER + b"expect: 100-continue\r\ncontent-length: 9\r\n\r\n")
        assert (await client.response())[0] == 401


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    async with running() as (_, port), Connection.to(port) as client:
        client.send(GET + GET.replace(b"models", b"second") + GET.replace(b"models", b"third"))
        paths = [(await client.response())[2]["path"] for _ in range(3)]
    assert paths == ["/v1/models", "/v1/second", "/v1/third"]


@pytest.mark.parametrize("together", [True, False], ids=["together", "later"])
@pytest.mark.parametrize(
    "behind",
    [GET, STRANGER + b"content-length: 90\r\n\r\n{", GET * 5000],
    ids=["one", "a part", "many"],
)
async def test_client_that_leaves_is_given_up_whatever_it_sent_behind(behind: bytes, together: bool) -> None:
    async with running() as (app, port), Connection.to(port) as client:
        client.send(WAIT + (behind if together else b""))
        await within(app.started.acquire())
        client.send(b"" if together else behind)
        await client.drain()
        client.leave()
        await within(app.given_up.acquire())
        await all_closed(app)


async def test_client_that_leaves_after_a_large_body_is_given_up() -> None:
    """uvicorn stops reading while much of a body waits; the end of a connection would go unseen then."""
    async with running() as (app, port), Connection.to(port) as client:
        client.send(b"POST /v1/wait HTTP/1.1\r\n" + BEARER + b"content-length: 100000\r\n\r\n")
        client.send(b"a" * 100_000)
        await within(app.started.acquire())
        await client.drain()
        client.leave()
        await within(app.given_up.acquire())
        await all_closed(app)


async def test_more_than_a_head_of_pipelined_requests_is_not_kept() -> None:
    async with running(head_limit_bytes=4096) as (app, port), Connection.to(port) as client:
        client.send(WAIT)
        await within(app.started.acquire())
        for _ in range(8):
            client.send(GET * 30)
            await client.drain()
            await asyncio.sleep(0.01)
        app.go.set()
        assert (await client.response())[2]["path"] == "/v1/wait"
        answered = (await client.rest()).count(b"HTTP/1.1 200")
    assert 0 < answered < 240


async def test_nonsense_behind_a_request_does_not_disturb_its_answer() -> None:
    async with running() as (app, port), Connection.to(port) as client:
        client.send(WAIT + b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        await within(app.started.acquire())
        app.go.set()
        assert (await client.response())[2]["path"] == "/v1/wait"
        assert await client.closed()


async def test_new_connection_beyond_the_limit_closes_the_longest_idle_one() -> None:
    limits = {"connections_limit": 3, "connections_per_address": 3}
    async with running(**limits) as (app, port), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Connection.to(port)) for _ in range(3)]
        for client in (clients[1], clients[0], clients[2]):
            client.send(GET)
            assert (await client.response())[0] == 200
        assert (await exchange(port, GET))[0] == 200
        assert await clients[1].closed()
        clients[0].send(GET)
        assert (await clients[0].response())[0] == 200
        assert app.count("idle_connection_closed") == 1


async def test_connection_beyond_the_limit_is_refused_while_all_are_busy() -> None:
    limits = {"connections_limit": 2, "connections_per_address": 2, "admin_reserve": 0}
    async with running(**limits) as (app, port), AsyncExitStack() as stack:
        for _ in range(2):
            (await stack.enter_async_context(Connection.to(port))).send(WAIT)
            await within(app.started.acquire())
        status, headers, body = await exchange(port, b"")
        assert (status, body["error"]["class"]) == (503, "too_many_connections_of_address")
        status, headers, body = await exchange(port, b"", source="127.0.0.2")
        assert (status, body["error"]["class"]) == (503, "too_many_connections")
        assert headers["retry-after"] == "1"
        assert app.count("too_many_connections") == 1


async def test_address_that_takes_its_share_leaves_the_rest_to_others() -> None:
    limits = {"connections_limit": 4, "connections_per_address": 2, "admin_reserve": 0}
    async with running(**limits) as (app, port), AsyncExitStack() as stack:
        for _ in range(2):
            (await stack.enter_async_context(Connection.to(port))).send(WAIT)
            await within(app.started.acquire())
        _, _, body = await exchange(port, GET)
        assert body["error"]["class"] == "too_many_connections_of_address"
        assert "at most 2 open connections" in body["error"]["message"]
        assert (await exchange(port, GET, source="127.0.0.2"))[0] == 200
        assert app.count("too_many_connections_of_address") == 1


async def test_silent_and_slow_strangers_do_not_keep_the_administrator_out() -> None:
    limits = {"connections_limit": 4, "connections_per_address": 4}
    async with running(**limits) as (_, port), AsyncExitStack() as stack:
        for data in (b"", b"GET / HT", b"", STRANGER + b"content-length: 90\r\n\r\n"):
            (await stack.enter_async_context(Connection.to(port))).send(data)
        assert (await exchange(port, ADMIN))[0] == 200


async def test_busy_users_leave_the_administrator_a_reserve() -> None:
    limits = {"connections_limit": 4, "connections_per_address": 4, "admin_reserve": 2}
    async with running(**limits) as (app, port), AsyncExitStack() as stack:
        for _ in range(2):
            (await stack.enter_async_context(Connection.to(port))).send(WAIT)
            await within(app.started.acquire())
        status, headers, body = await exchange(port, GET)
        assert (status, body["error"]["class"]) == (503, "too_many_requests")
        assert headers["retry-after"] == "1"
        assert (await exchange(port, ADMIN))[0] == 200
        app.go.set()


async def test_client_that_does_not_read_its_stream_is_given_up() -> None:
    async with running(send_timeout_s=0.3) as (app, port):
        async with Connection.to(port, window=2048) as client:
            client.send(ENDLESS)
            await within(app.given_up.acquire())
            await all_closed(app)
        assert app.count("send_timeout") == 1


async def test_client_that_reads_slowly_gets_its_stream() -> None:
    async with running(send_timeout_s=0.3) as (app, port), Connection.to(port, window=2048) as client:
        client.send(ENDLESS)
        for _ in range(100):
            assert await client.read(65536)
            await asyncio.sleep(0.01)
        assert app.given_up.locked()


async def test_whole_answer_that_nobody_reads_is_not_kept() -> None:
    async with running(send_timeout_s=0.2, keep_alive_s=60) as (app, port):
        async with Connection.to(port, window=2048) as client:
            client.send(LONG * 40)
            await all_closed(app)
        assert app.count("send_timeout") == 1


@pytest.mark.parametrize("target", [b"OPTIONS *", b"OPTIONS /v1/models", b"GET /", b"CONNECT x:1"])
async def test_odd_request_target_without_a_key_is_refused(target: bytes) -> None:
    async with running() as (_, port):
        status, _, body = await exchange(port, target + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (status, body["error"]["class"]) in ((401, "unauthorized"), (400, "bad_request"))


async def test_upgrade_is_answered_in_http_and_writes_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    upgrade = b"connection: Upgrade\r\nupgrade: websocket\r\n\r\n"
    async with running() as (_, port), Connection.to(port) as client:
        client.send(GET.removesuffix(b"\r\n") + upgrade)
        status, headers, _ = await client.response()
        assert (status, headers["connection"]) == (200, "close")
        assert await client.closed()
    assert not caplog.records
