"""The proxy: routes a request, sends it to a server, retries it once, and relays the response as bytes."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, nullcontext

import aiohttp
from starlette.requests import Request

from harness.router.config import Route, RouterConfig
from harness.router.coordinator.manager import CoordinatorManager
from harness.router.errors import CONNECTION_ERRORS, UNKNOWN_MODEL, RouterError
from harness.router.failures import Failures, Fate, SentRequest, digest_of
from harness.router.http.answers import read_answer, too_long
from harness.router.http.bodies import Body
from harness.router.http.quotas import usage_of
from harness.router.http.stream_stats import STREAM_TYPES
from harness.router.json_log import log
from harness.router.pool.pool import Pool
from harness.router.proxy.upstream import (
    CoordinatorUpstream,
    PoolUpstream,
    Upstream,
    UpstreamRequest,
    UpstreamResponse,
    post,
)
from harness.router.routing.resolver import RouteResolver
from harness.router.routing.rule import Decision

_UNAVAILABLE = frozenset({502, 503, 504})
"""From a server that loads its model, or has lost its own upstream: another server may have the model."""


class Proxy:
    """Sends each request to the pool or to the coordinator."""

    def __init__(
        self,
        config: RouterConfig,
        resolver: RouteResolver,
        pool: Pool,
        coordinator: CoordinatorManager,
        session: aiohttp.ClientSession,
        failures: Failures,
    ) -> None:
        self._config = config
        self._answer_bytes = config.answer_limit_bytes
        self.resolver = resolver
        self._pool = pool
        self._coordinator = coordinator
        self._session = session
        self._failures = failures

    async def open(self, request: Request, model: str) -> UpstreamRequest:
        """Route a request and acquire its server; ``resources`` of the result release it.

        Raises:
            RouterError: no server has the model, it fits nowhere or cannot be made ready, or the client's key
                is suspended.
        """
        key = getattr(request.state, "key", "")
        self._failures.check_key(key)
        started_ns = time.monotonic_ns()
        if stats := getattr(request.state, "stats", None):
            stats.model = model
        decision = await self.resolver.decide(model)
        request.state.route, request.state.route_reason = decision.route, decision.reason
        resources = AsyncExitStack()
        waits = decision.route is Route.COORDINATOR  # the pool has no queue
        with usage_of(request).queued() if waits else nullcontext():
            upstream = await self._acquire(model, decision, resources)
        if upstream is None:
            raise self._pool.why_none(model) or RouterError(
                404, UNKNOWN_MODEL, f"model '{model}' not found: no server has it any more"
            )
        load_ns = time.monotonic_ns() - started_ns if decision.route is Route.COORDINATOR else 0
        opened = UpstreamRequest(model, decision, upstream, resources, started_ns, load_ns=load_ns)
        opened.request_id = getattr(request.state, "request_id", "")
        opened.key = key
        return opened

    async def send(
        self, request: UpstreamRequest, path: str, body: Body, stack: AsyncExitStack
    ) -> UpstreamResponse:
        """Send ``body`` and return once the response has begun; ``stack`` closes it.

        Nothing has been sent to the client yet. So a request whose server is lost is sent once more: to
        another server of the pool, or to the coordinator after its restart. One that ended its server is not.

        Raises:
            RouterError: the server broke off before it answered, twice; the request timed out, or it, or the
                same one before, ended its server.
        """
        try:
            return await self._attempt(request, path, body, stack)
        except UpstreamLostError as lost:
            if lost.poison or not await self._retry(request, path):
                raise lost.error from None
            log("request_retried", model=request.model, error_class=lost.error.error_class)
        if request.body_for_server:
            body = await request.body_for_server()  # it may be of another kind or build
        try:
            return await self._attempt(request, path, body, stack)
        except UpstreamLostError as lost:
            raise lost.error from None

    async def read_all(self, request: UpstreamRequest, response: UpstreamResponse) -> bytes:
        """The whole body of a response.

        Raises:
            RouterError: the server broke off in the middle, the request timed out, or the body is too long.
        """
        if not response.streamed:
            return response.first_bytes
        whole = bytearray()
        async for chunk in self.relay(request, response):
            whole += chunk
            if len(whole) > self._answer_bytes:
                raise too_long(self._answer_bytes)
        return bytes(whole)

    async def relay(self, request: UpstreamRequest, response: UpstreamResponse) -> AsyncIterator[bytes]:
        """The response's body as it arrives.

        Raises:
            RouterError: the server broke off in the middle, or the request timed out.
        """
        chunk = response.first_bytes
        try:
            while chunk:
                yield chunk
                chunk = await response.response.content.readany()
                if not chunk.startswith(b":"):  # a hung server sends SSE comments too
                    request.upstream.on_progress()
            request.upstream.sent.end(response.sent, answered=True)
        except CONNECTION_ERRORS as error:
            if _timed_out(error):
                failure = self._timeout(request)
            else:
                failure = (await self._lost(request, response.sent, error)).error
            log("stream_broken", error_class=failure.error_class, message=failure.message)
            raise failure from None

    async def _attempt(
        self, request: UpstreamRequest, path: str, body: Body, stack: AsyncExitStack
    ) -> UpstreamResponse:
        upstream, timeout_s = request.upstream, self._config.request_timeout_s
        sent = SentRequest(request.request_id, request.key, await digest_of(path, body), request.model)
        self._failures.check(sent)
        upstream.sent.add(sent)
        stack.callback(upstream.sent.end, sent)
        try:
            response = await post(self._session, upstream, path, body, timeout_s=timeout_s)
            stack.callback(response.close)
            if response.status in _UNAVAILABLE and self._alternative(request, path) is not None:
                upstream.sent.end(sent, answered=True)
                reason = f"it answered {response.status}"
                raise UpstreamLostError(await upstream.report_failure(reason))
            streamed = response.headers.get("content-type", "").startswith(STREAM_TYPES)
            reading = response.content.readany() if streamed else read_answer(response, self._answer_bytes)
            first = await reading
        except CONNECTION_ERRORS as error:
            if _timed_out(error):
                raise self._timeout(request) from None
            raise await self._lost(request, sent, error) from None
        upstream.on_progress()
        if not streamed:
            upstream.sent.end(sent, answered=True)
        return UpstreamResponse(response, first, streamed, sent)

    async def _lost(
        self, request: UpstreamRequest, sent: SentRequest, error: BaseException
    ) -> "UpstreamLostError":
        """The error for a request whose server broke off; blames a request that ended it, or two of them."""
        upstream = request.upstream
        failure = await upstream.report_failure(repr(error))
        if isinstance(error, aiohttp.ClientConnectorError):
            upstream.sent.end(sent, answered=True)  # it never had the request
            return UpstreamLostError(failure)
        fate = await upstream.fate(sent)
        poison = fate is Fate.POISONED
        if fate is Fate.LOST:
            request.losses += 1
            if poison := request.losses > 1:
                message = (
                    f"{sent} was in flight when its server was lost, and again when it was sent once more"
                )
                self._failures.blame(sent, message, diagnosis=failure.diagnosis)
        upstream.sent.end(sent)
        return UpstreamLostError(self._failures.refusal(sent) if poison else failure, poison=poison)

    async def _retry(self, request: UpstreamRequest, path: str) -> bool:
        """Acquire a server for a second attempt; False where there is none."""
        if isinstance(request.upstream, CoordinatorUpstream):
            if not request.upstream.died:
                return False
            await request.resources.aclose()
            request.upstream = await self._acquire_coordinator(request.decision.model, request.resources)
            request.load_ns = time.monotonic_ns() - request.started_ns
        else:
            alternative = self._alternative(request, path)
            await request.resources.aclose()
            if alternative is None:
                return False
            request.resources.enter_context(self._pool.use(alternative.target))
            request.upstream = alternative
        request.attempt += 1
        return True

    def _alternative(self, request: UpstreamRequest, path: str) -> PoolUpstream | None:
        """Another server of the pool for a request's first retry."""
        if request.attempt > 1 or request.decision.route is not Route.POOL:
            return None
        servers = request.decision.servers
        target = self._pool.pick(request.model, servers, exclude=request.upstream.url)
        if target is None or (path.startswith("/api/") and target.kind != "ollama"):
            return None
        return PoolUpstream(self._pool, target, request.model)

    async def _acquire(self, model: str, decision: Decision, resources: AsyncExitStack) -> Upstream | None:
        if decision.route is Route.COORDINATOR:
            return await self._acquire_coordinator(decision.model, resources)
        target = self._pool.pick(model, decision.servers)
        if target is None:
            return None
        resources.enter_context(self._pool.use(target))
        return PoolUpstream(self._pool, target, model)

    async def _acquire_coordinator(self, model: str, resources: AsyncExitStack) -> CoordinatorUpstream:
        grant = await resources.enter_async_context(self._coordinator.acquire(model))
        return CoordinatorUpstream(self._coordinator, grant)

    def _timeout(self, request: UpstreamRequest) -> RouterError:
        limit = f"{self._config.request_timeout_s:g} s"
        return RouterError(504, "request_timeout", f"{request.model}: no end of the answer within {limit}")


class UpstreamLostError(Exception):
    """A server was lost before its response began."""

    def __init__(self, error: RouterError, *, poison: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.poison = poison
        """Whether the request is the cause."""


def _timed_out(error: BaseException) -> bool:
    """Whether the whole request took too long; a timeout of the connection is a subclass."""
    return type(error) is TimeoutError
