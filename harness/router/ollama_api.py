"""The Ollama API, ``/api``: converted to the OpenAI API that the servers speak, and back."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from harness.router import ollama
from harness.router.errors import RouterError
from harness.router.exchange import Call, Exchange, HeldStream
from harness.router.upstream import error_message, model_of, parse_object, read_body, while_connected

_NDJSON = "application/x-ndjson"


class OllamaApi:
    """Handlers of ``/api``."""

    def __init__(self, exchange: Exchange, *, body_limit_bytes: int) -> None:
        self._exchange = exchange
        self._body_limit_bytes = body_limit_bytes

    async def chat(self, request: Request) -> Response:
        """``/api/chat``: converted to a chat completion and back."""
        asked = parse_object(await read_body(request, self._body_limit_bytes))
        call = await while_connected(request, self._exchange.open(request, model_of(asked)))
        async with AsyncExitStack() as stack:
            stack.push_async_exit(call.held)
            if not asked.get("messages"):
                return JSONResponse(ollama.loaded_answer(call.model), headers=call.headers)
            try:
                body = json.dumps(ollama.openai_request(asked)).encode()
            except (KeyError, TypeError, AttributeError) as error:
                raise RouterError(400, "bad_request", f"not an /api/chat body: {error!r}") from None
            sending = self._exchange.send(call, "/v1/chat/completions", body, stack)
            answer = await while_connected(request, sending)
            if answer.status == 200 and asked.get("stream", True):
                stream = self._convert(call, answer)
                return HeldStream(stream, 200, call.headers, _NDJSON, held=stack.pop_all())
            whole = _upstream_json(await while_connected(request, self._exchange.whole(call, answer)))
            if answer.status != 200:
                raise RouterError(answer.status, "upstream", error_message(whole))
            total = time.monotonic_ns() - call.started_ns
            converted = ollama.chat_answer(whole, model=call.model, total_ns=total, load_ns=call.load_ns)
            return JSONResponse(converted, headers=call.headers)

    async def _convert(self, call: Call, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        stream = ollama.ChatStream(call.model)
        try:
            async for raw in _lines(self._exchange.relay(call, answer)):
                if not raw.startswith(b"data: {"):
                    continue
                event = json.loads(raw[6:])
                if "error" in event:
                    yield _line({"error": error_message(event)})
                    return
                for line in stream.event(event):
                    yield _line(line)
        except RouterError as error:
            yield _line(error.ollama_body())
            return
        total = time.monotonic_ns() - call.started_ns
        for line in stream.end(total_ns=total, load_ns=call.load_ns):
            yield _line(line)


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Whole lines of a body that arrives in pieces."""
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line
    if rest:
        yield rest


def _upstream_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        raise RouterError(502, "upstream", f"the server's answer is not JSON: {body[:80]!r}") from None


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"
