"""One request's way upstream: decided, opened, sent, and its answer read or relayed as bytes."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

import aiohttp
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from harness.router.config import RouterConfig
from harness.router.coordinator.coordinator import Coordinator
from harness.router.errors import UNKNOWN_MODEL, RouterError
from harness.router.logs import log
from harness.router.pool.pool import Pool, unreachable
from harness.router.proxy.upstream import BROKEN, ClientLeftError, ClientWatch, post
from harness.router.routing.resolver import Decider
from harness.router.routing.rule import Decision, Route

_STREAMS = ("text/event-stream", "application/x-ndjson")
_UNAVAILABLE = frozenset({502, 503, 504})
"""A server that loads its model, or has lost its own: another one may have it."""

_REASON_CHARS = 200


def route_header(route: Route, reason: str = "") -> dict[str, str]:
    """The headers that say which way a request went and why, on answers and on errors."""
    why = " ".join(reason.encode("ascii", "replace").decode().split())[:_REASON_CHARS]
    return {"x-llama-route": route} | ({"x-llama-route-reason": why} if why else {})


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
    kind: str = field(default="openai", kw_only=True)
    """What the server speaks: ``openai``, or ``ollama`` (then ``/api`` needs no conversion)."""
    started_ns: int = field(default_factory=time.monotonic_ns)
    again: Callable[[], Awaitable[bool]] | None = None
    """Holds a new upstream for a second attempt; whether that makes sense."""
    moved: Callable[[], None] = lambda: None
    """Told of each piece of the answer: the upstream lives."""
    keep_alive: bool = False
    """Whether its connection may be left open for the next request."""
    extra_headers: dict[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        return route_header(self.decision.route, self.decision.reason) | self.extra_headers


@dataclass
class Answer:
    """What an upstream answers, once its first bytes are here: until then another one can be asked."""

    response: aiohttp.ClientResponse
    first: bytes
    """All of a body that is no stream; of a stream, its first piece."""

    @property
    def status(self) -> int:
        """HTTP status."""
        return self.response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """HTTP headers, in whatever case."""
        return self.response.headers

    @property
    def streamed(self) -> bool:
        """Whether it comes piece by piece."""
        return self.headers.get("content-type", "").startswith(_STREAMS)


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
            # A client that leaves is no error any more: its answer has begun.
            with suppress(ClientLeftError):
                await ClientWatch.of(scope, receive).guard(self.stream_response(send))


class Exchange:
    """The way from a handler to the server that answers; the handlers of both APIs share it."""

    def __init__(
        self,
        config: RouterConfig,
        decider: Decider,
        pool: Pool,
        coordinator: Coordinator,
        session: aiohttp.ClientSession,
    ) -> None:
        self._config = config
        self._decider = decider
        self._pool = pool
        self._coordinator = coordinator
        self._session = session

    async def decide(self, model: str) -> Decision:
        """Which way a model would go; nothing is recorded.

        Raises:
            RouterError: nobody has it (404, with the known names), or it fits nowhere (507).
        """
        return await self._decider.decide(model, record=False)

    def models(self) -> list[str]:
        """Every model that can be asked for."""
        return self._decider.models()

    async def open(self, request: Request, model: str) -> Call:
        """Decide, and hold what is needed until the answer has been sent.

        Raises:
            RouterError: nobody has the model, it fits nowhere, or it cannot be made ready.
        """
        started = time.monotonic_ns()
        if seen := getattr(request.state, "observed", None):
            seen.model = model
        decision = await self._decider.decide(model)
        request.state.route, request.state.route_reason = decision.route, decision.reason
        held = AsyncExitStack()
        if decision.route is Route.POOL:
            call = Call(model, decision, "", None, _no_upstream, held, 0, started)
            if not _use_pool(self._pool, call):
                raise RouterError(404, UNKNOWN_MODEL, f"model '{model}' not found: no server has it any more")
            return call
        return await self._borrow(
            Call(model, decision, self._coordinator.url, None, _no_upstream, held, 0, started)
        )

    async def _borrow(self, call: Call) -> Call:
        """Wait for the coordinator, and keep it for the call."""
        loan = await call.held.enter_async_context(self._coordinator.lend(call.decision.model))

        async def explain(seen: str) -> RouterError:
            return await self._coordinator.explain(loan.start, seen)

        async def again() -> bool:
            if not loan.start.unasked:
                return False
            await call.held.aclose()
            await self._borrow(call)
            return True

        call.explain, call.again, call.moved = explain, again, loan.start.moved
        call.load_ns = time.monotonic_ns() - call.started_ns
        call.extra_headers |= loan.headers
        return call

    async def send(self, call: Call, path: str, body: bytes, stack: AsyncExitStack) -> Answer:
        """Send ``body``; the answer has begun, and is let go of with ``stack``.

        Nothing has been sent to the client yet, so an upstream that is lost now is asked once more when it,
        or another one, is there.

        Raises:
            RouterError: the server broke off before it answered, twice; or it had no time left.
        """
        try:
            return await self._attempt(call, path, body, stack)
        except BrokenOffError as broken:
            error = broken.error
            if call.again is None or not await call.again():
                raise error from None
        log("asked again", model=call.model, error_class=error.error_class)
        call.extra_headers["x-llama-attempt"] = "2"
        try:
            return await self._attempt(call, path, body, stack)
        except BrokenOffError as broken:
            raise broken.error from None

    async def _attempt(self, call: Call, path: str, body: bytes, stack: AsyncExitStack) -> Answer:
        try:
            response = await post(
                self._session,
                call.url + path,
                body,
                key=call.key,
                timeout_s=self._config.request_timeout_s,
                keep_alive=call.keep_alive,
            )
            stack.callback(response.close)
            if response.status in _UNAVAILABLE and self._elsewhere(call):
                raise BrokenOffError(await call.explain(f"it answered {response.status}"))
            answer = Answer(response, b"")
            answer.first = await (response.content.readany() if answer.streamed else response.read())
        except BROKEN as error:
            raise BrokenOffError(await self._explained(call, error)) from None
        call.moved()
        return answer

    def _elsewhere(self, call: Call) -> bool:
        """Whether another server of the pool can be asked."""
        if call.again is None or call.decision.route is not Route.POOL:
            return False
        return self._pool.pick(call.model, call.decision.servers, but=call.url) is not None

    async def _explained(self, call: Call, error: Exception) -> RouterError:
        if type(error) is TimeoutError:
            limit = f"{self._config.request_timeout_s:g} s"
            return RouterError(504, "request_timeout", f"{call.model}: no end of the answer within {limit}")
        return await call.explain(repr(error))

    async def whole(self, call: Call, answer: Answer) -> bytes:
        """All of an answer.

        Raises:
            RouterError: the server broke off in the middle.
        """
        if not answer.streamed:
            return answer.first
        return b"".join([piece async for piece in self.relay(call, answer)])

    async def relay(self, call: Call, answer: Answer) -> AsyncIterator[bytes]:
        """The answer's bytes as they arrive.

        Raises:
            RouterError: the server broke off in the middle; the handler tells its client in its own way.
        """
        piece = answer.first
        try:
            while piece:
                yield piece
                piece = await answer.response.content.readany()
                if not piece.startswith(b":"):  # a comment comes from a hung server too
                    call.moved()
        except BROKEN as error:
            broken = await self._explained(call, error)
            log("stream broken", error_class=broken.error_class, message=broken.message)
            raise broken from None


class BrokenOffError(Exception):
    """An upstream was lost before its answer began."""

    def __init__(self, error: RouterError) -> None:
        super().__init__(error.message)
        self.error = error


def _use_pool(pool: Pool, call: Call, but: str | None = None) -> bool:
    """Point a call at the best pool server for it; False where there is none to ask.

    Args:
        pool: the servers.
        call: its decision names those that may be asked.
        but: URL of one that has just failed.
    """
    target = pool.pick(call.model, call.decision.servers, but=but)
    if target is None:
        return False
    call.held.enter_context(pool.use(target))

    async def explain(seen: str) -> RouterError:
        pool.failed(target, seen)
        return unreachable(target, call.model, seen)

    async def again() -> bool:
        await call.held.aclose()
        return _use_pool(pool, call, but=target.url)

    call.url, call.key, call.kind = target.url, target.key, target.kind
    call.keep_alive = target.keep_alive
    call.explain, call.again = explain, again if but is None else None
    call.moved = lambda: pool.succeeded(target)
    return True


async def _no_upstream(seen: str) -> RouterError:
    return RouterError(502, "upstream", seen)
