"""What the harness makes of what answers at the router's address."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from harness.errors import HarnessError
from harness.router_client.client import RouterAddress, RouterClient, RouterRefusedError


@asynccontextmanager
async def answering(status: int, text: str) -> AsyncIterator[RouterClient]:
    """A client of something that answers everything the same."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, text=text)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    server = TestServer(app)
    await server.start_server()
    address = RouterAddress(str(server.make_url("")).rstrip("/"), "key", "admin", "head")
    async with server, RouterClient(address) as client:
        yield client


@pytest.mark.parametrize("text", ["<h1>404</h1>", "", "[]", '{"error": "gone"}'])
async def test_error_of_something_else_is_no_refusal_of_the_router(text: str) -> None:
    async with answering(404, text) as client:
        with pytest.raises(HarnessError, match=r"answered POST /admin/lease with 404, and not as") as caught:
            await client.lease("me", 20)
    assert not isinstance(caught.value, RouterRefusedError)
    assert "llama-router.service is active on head" in str(caught.value)


async def test_refusal_of_the_router_carries_its_class_and_words() -> None:
    body = '{"error": {"message": "run a of b has the cluster", "class": null}}'
    async with answering(409, body) as client:
        with pytest.raises(RouterRefusedError, match="409: run a of b has the cluster"):
            await client.lease("me", 20)
