"""The OpenAI API, ``/v1``: what every server here speaks itself, so bytes in and bytes out."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
from starlette.requests import Request
from starlette.responses import Response

from harness.router.errors import RouterError
from harness.router.exchange import Call, Exchange, HeldStream
from harness.router.upstream import model_of, parse_object, read_body, while_connected

_SSE = "text/event-stream"


class OpenAiApi:
    """Handlers of ``/v1``."""

    def __init__(self, exchange: Exchange, *, body_limit_bytes: int) -> None:
        self._exchange = exchange
        self._body_limit_bytes = body_limit_bytes

    async def forward(self, request: Request) -> Response:
        """``/v1/chat/completions`` and ``/v1/completions``: bytes in, bytes out."""
        body = await read_body(request, self._body_limit_bytes)
        model = model_of(parse_object(body))
        call = await while_connected(request, self._exchange.open(request, model))
        async with AsyncExitStack() as stack:
            stack.push_async_exit(call.held)
            sending = self._exchange.send(call, request.url.path, body, stack)
            answer = await while_connected(request, sending)
            media_type = answer.headers.get("content-type", "application/json")
            if not media_type.startswith(_SSE):
                whole = await while_connected(request, self._exchange.whole(call, answer))
                return Response(whole, answer.status, call.headers, media_type)
            stream = self._relay(call, answer)
            return HeldStream(stream, answer.status, call.headers, media_type, held=stack.pop_all())

    async def _relay(self, call: Call, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._exchange.relay(call, answer):
                yield chunk
        except RouterError as error:
            yield b"data: " + json.dumps(error.body()).encode() + b"\n\n"
