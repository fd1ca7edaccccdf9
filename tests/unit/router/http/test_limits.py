"""Clients that send too much, too slowly or nonsense."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from harness.router.http import disconnect
from tests.unit.router.serving import KEY, Connection, exchange, serve

HEAD = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer " + KEY.encode() + b"\r\n"
POST = HEAD.replace(b"GET /v1/models", b"POST /v1/chat/completions")
LOGIN = b"POST /dashboard/login HTTP/1.1\r\nhost: x\r\n"


@pytest_asyncio.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    limits = {
        "head_timeout_s": 0.3,
        "head_limit_bytes": 4096,
        "headers_limit": 20,
        "connections_limit": 3,
        "connections_per_address": 3,
        "admin_reserve": 0,
        "requests_per_key": 3,
        "body_limit_bytes": 100,
    }
    async with serve(tmp_path, **limits) as port:
        yield port


async def test_whole_request_is_answered(port: int) -> None:
    status, _, body = await exchange(port, HEAD + b"\r\n")
    assert (status, body["data"]) == (200, [])


@pytest.mark.parametrize(
    ("data", "status", "error_class"),
    [
        (HEAD, 408, "head_timeout"),
        (HEAD + b"x: " + b"a" * 9000, 431, "head_too_large"),
        (HEAD + b"x: " + b"a" * 9000 + b"\r\n\r\n", 431, "head_too_large"),
        (HEAD + b"".join(b"x%d: a\r\n" % n for n in range(30)) + b"\r\n", 431, "head_too_large"),
        (b"\x16\x03\x01 this is not HTTP\r\n\r\n", 400, "bad_request"),
    ],
    ids=["cut", "endless", "long", "many headers", "not HTTP"],
)
async def test_head_beyond_its_limits_is_refused_with_a_typed_error(
    port: int, data: bytes, status: int, error_class: str
) -> None:
    got, headers, body = await exchange(port, data)
    assert (got, body["error"]["class"]) == (status, error_class)
    assert headers["content-type"] == "application/json"


async def test_kept_connection_may_not_send_its_next_head_slowly(port: int) -> None:
    async with Connection.to(port) as client:
        client.send(HEAD + b"\r\n")
        assert (await client.response())[0] == 200
        client.send(HEAD)
        status, _, body = await client.response()
    assert (status, body["error"]["class"]) == (408, "head_timeout")


async def test_body_that_is_too_long_is_refused(port: int) -> None:
    status, _, body = await exchange(port, POST + b"content-length: 200\r\n\r\n" + b"a" * 200)
    assert (status, body["error"]["class"]) == (413, "too_large")


@pytest.mark.parametrize("sent", [b"", b"{"], ids=["nothing", "a part"])
@pytest.mark.parametrize("head", [POST, LOGIN], ids=["chat", "login"])
async def test_body_that_does_not_arrive_is_refused_and_its_connection_freed(
    port: int, head: bytes, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disconnect, "BODY_TIMEOUT_S", 0.1)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Connection.to(port)) for _ in range(3)]
        for client in clients:
            client.send(head + b"content-length: 10\r\n\r\n" + sent)
        for client in clients:
            status, headers, body = await client.response()
            assert (status, body["error"]["class"]) == (408, "body_timeout")
            assert headers["connection"] == "close"
            assert await client.closed()
        status, _, body = await exchange(port, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (status, body) == (200, {"status": "ok"})
