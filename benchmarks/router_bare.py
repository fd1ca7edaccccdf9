"""A minimal Python pass-through: one Starlette handler, one aiohttp session, bytes in and out.

    benchmarks/router_bare.py PORT UPSTREAM_PORT

It has no keys, routing, limits, counters or log, and it does not detect that a client disconnects. The
difference to the router is the cost of these.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


def bare(upstream: str) -> Starlette:
    """The application."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            app.state.session = session
            yield

    async def relay(request: Request) -> Response:
        headers = {"content-type": "application/json"}
        answer = await request.app.state.session.post(
            upstream + request.url.path, data=await request.body(), headers=headers
        )
        kind = answer.headers["content-type"]
        if kind.startswith("text/event-stream"):
            return StreamingResponse(_pieces(answer), answer.status, media_type=kind)
        async with answer:
            return Response(await answer.read(), answer.status, media_type=kind)

    return Starlette(routes=[Route("/v1/chat/completions", relay, methods=["POST"])], lifespan=lifespan)


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async with answer:
        async for piece in answer.content.iter_any():
            yield piece


if __name__ == "__main__":
    port, upstream_port = map(int, sys.argv[1:])
    application = bare(f"http://127.0.0.1:{upstream_port}")
    uvicorn.run(application, host="127.0.0.1", port=port, access_log=False, log_level="warning")
