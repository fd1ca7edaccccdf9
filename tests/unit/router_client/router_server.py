"""A server that answers at a router's address, and a client of it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer
from harness.router_client.client import RouterAddress, RouterClient

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[RouterClient]:
    """A client of a server whose every path ``handler`` answers."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    server = TestServer(app)
    await server.start_server()
    address = RouterAddress(str(server.make_url("")).rstrip("/"), "key", "admin", "head")
    async with server, RouterClient(address) as client:
        yield client


@asynccontextmanager
async def answering(status: int, text: str, content_type: str = "text/plain") -> AsyncIterator[RouterClient]:
    """A client of something that answers everything the same."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, text=text, content_type=content_type)

    async with served(answer) as client:
        yield client
