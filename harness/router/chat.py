"""The public APIs: a request for a model goes to the pool or to the coordinator, its answer comes back."""

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from harness.router import ollama
from harness.router.catalogue import Catalogue
from harness.router.config import RouterConfig
from harness.router.coordinator import Coordinator
from harness.router.errors import RouterError
from harness.router.logs import log
from harness.router.pool import Pool, unreachable
from harness.router.routing import Decision, Route, choose_route
from harness.router.upstream import BROKEN, chunks, error_message, post, read_body, while_connected

_SSE = "text/event-stream"
_NDJSON = "application/x-ndjson"


def route_header(route: Route) -> dict[str, str]:
    """The header that says which way a request went, on answers and on errors."""
    return {"x-llama-route": route}


@dataclass
class Call:
    """One request on its way: where it went, what it holds, and what must be let go at its end."""

    model: str
    decision: Decision
    url: str
    key: str | None
    explain: Callable[[str], Awaitable[RouterError]]
    """Gives the error for an upstream that broke off."""
    held: AsyncExitStack
    load_ns: int
    started_ns: int = field(default_factory=time.monotonic_ns)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        return route_header(self.decision.route)


class HeldStream(StreamingResponse):
    """A stream that lets go of what it needs when it ends, breaks or its client leaves."""

    def __init__(
        self,
        content: AsyncIterator[bytes],
        status: int,
        headers: dict[str, str],
        media_type: str,
        *,
        held: AsyncExitStack,
    ) -> None:
        super().__init__(content, status, headers, media_type)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


class Front:
    """Handlers of ``/v1`` and ``/api``."""

    def __init__(
        self,
        config: RouterConfig,
        catalogue: Catalogue,
        pool: Pool,
        coordinator: Coordinator,
        session: aiohttp.ClientSession,
    ) -> None:
        self._config = config
        self._catalogue = catalogue
        self._pool = pool
        self._coordinator = coordinator
        self._session = session

    def decide(self, model: str) -> Decision:
        """Which way a model goes.

        Raises:
            RouterError: nobody has it (404, with the known names).
        """
        file = self._catalogue.find(model)
        decision = choose_route(
            model,
            file_bytes=file.file_bytes if file else None,
            pool_models=self._pool.models,
            large_model_bytes=self._config.large_model_bytes,
        )
        if decision is None:
            known = ", ".join(self.models()) or "none"
            raise RouterError(404, "unknown_model", f"no model '{model}'; there are: {known}")
        return decision

    def models(self) -> list[str]:
        """Every model that can be asked for."""
        return sorted({*self._pool.models, *(file.name for file in self._catalogue.files())})

    async def openai(self, request: Request) -> Response:
        """``/v1/chat/completions`` and ``/v1/completions``: bytes in, bytes out."""
        body = await read_body(request, self._config.body_limit_bytes)
        asked = _parse(body)
        call = await while_connected(request, self._open(request, asked))
        async with AsyncExitStack() as stack:
            stack.push_async_exit(call.held)
            answer = await while_connected(request, self._send(call, request.url.path, body, stack))
            media_type = answer.headers.get("content-type", "application/json")
            if not media_type.startswith(_SSE):
                whole = await while_connected(request, self._whole(call, answer))
                return Response(whole, answer.status, call.headers, media_type)
            stream = self._relay(call, answer)
            return HeldStream(stream, answer.status, call.headers, media_type, held=stack.pop_all())

    async def ollama_chat(self, request: Request) -> Response:
        """``/api/chat``: converted to a chat completion and back."""
        asked = _parse(await read_body(request, self._config.body_limit_bytes))
        call = await while_connected(request, self._open(request, asked))
        async with AsyncExitStack() as stack:
            stack.push_async_exit(call.held)
            if not asked.get("messages"):
                return JSONResponse(ollama.loaded_answer(call.model), headers=call.headers)
            try:
                body = json.dumps(ollama.openai_request(asked)).encode()
            except (KeyError, TypeError, AttributeError) as error:
                raise RouterError(400, "bad_request", f"not an /api/chat body: {error!r}") from None
            answer = await while_connected(request, self._send(call, "/v1/chat/completions", body, stack))
            if answer.status == 200 and asked.get("stream", True):
                stream = self._convert(call, answer)
                return HeldStream(stream, 200, call.headers, _NDJSON, held=stack.pop_all())
            whole = _upstream_json(await while_connected(request, self._whole(call, answer)))
            if answer.status != 200:
                raise RouterError(answer.status, "upstream", error_message(whole))
            total = time.monotonic_ns() - call.started_ns
            converted = ollama.chat_answer(whole, model=call.model, total_ns=total, load_ns=call.load_ns)
            return JSONResponse(converted, headers=call.headers)

    async def _open(self, request: Request, asked: dict[str, Any]) -> Call:
        """Decide, and hold what is needed until the answer has been sent."""
        model = asked.get("model")
        if not isinstance(model, str):
            raise RouterError(400, "bad_request", "the body names no model")
        decision, started = self.decide(model), time.monotonic_ns()
        request.state.route = decision.route
        log("route", model=model, route=decision.route, reason=decision.reason)
        held = AsyncExitStack()
        if decision.route is Route.POOL:
            target = self._pool.target(model)

            async def pool_error(seen: str) -> RouterError:
                return unreachable(target, model, seen)

            return Call(model, decision, target.url, target.key, pool_error, held, 0, started)
        start = await held.enter_async_context(self._coordinator.lend(model))
        waited = time.monotonic_ns() - started

        async def coordinator_error(seen: str) -> RouterError:
            return await self._coordinator.explain(start, seen)

        return Call(model, decision, self._coordinator.url, None, coordinator_error, held, waited, started)

    async def _send(
        self, call: Call, path: str, body: bytes, stack: AsyncExitStack
    ) -> aiohttp.ClientResponse:
        try:
            answer = await post(
                self._session, call.url + path, body, key=call.key, timeout_s=self._config.request_timeout_s
            )
        except BROKEN as error:
            raise await call.explain(repr(error)) from None
        stack.callback(answer.close)
        return answer

    async def _whole(self, call: Call, answer: aiohttp.ClientResponse) -> bytes:
        try:
            return await answer.read()
        except BROKEN as error:
            raise await call.explain(repr(error)) from None

    async def _relay(self, call: Call, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks(answer):
                yield chunk
        except BROKEN as error:
            broken = await call.explain(repr(error))
            log("stream broken", error_class=broken.error_class, message=broken.message)
            yield b"data: " + json.dumps(broken.body()).encode() + b"\n\n"

    async def _convert(self, call: Call, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        stream = ollama.ChatStream(call.model)
        try:
            async for raw in answer.content:
                if not raw.startswith(b"data: {"):
                    continue
                event = json.loads(raw[6:])
                if "error" in event:
                    yield _line({"error": error_message(event)})
                    return
                for line in stream.event(event):
                    yield _line(line)
        except BROKEN as error:
            broken = await call.explain(repr(error))
            log("stream broken", error_class=broken.error_class, message=broken.message)
            yield _line(broken.ollama_body())
            return
        total = time.monotonic_ns() - call.started_ns
        for line in stream.end(total_ns=total, load_ns=call.load_ns):
            yield _line(line)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except ValueError as error:
        raise RouterError(400, "bad_request", f"the body is not JSON: {error}") from None
    if not isinstance(asked, dict):
        raise RouterError(400, "bad_request", "the body is not a JSON object")
    return asked


def _upstream_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        raise RouterError(502, "upstream", f"the server's answer is not JSON: {body[:80]!r}") from None


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"
