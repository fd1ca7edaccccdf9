"""The proxy: routes a request, sends it to a server, retries it once, and relays the response as bytes."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
from starlette.requests import Request

from harness.router.config import Route, RouterConfig
from harness.router.coordinator.manager import CoordinatorManager
from harness.router.errors import CONNECTION_ERRORS, UNKNOWN_MODEL, RouterError
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
    ) -> None:
        self._config = config
        self.resolver = resolver
        self._pool = pool
        self._coordinator = coordinator
        self._session = session

    async def open(self, request: Request, model: str) -> UpstreamRequest:
        """Route a request and acquire its server; ``resources`` of the result release it.

        Raises:
            RouterError: no server has the model, it fits nowhere, or it cannot be made ready.
        """
        started_ns = time.monotonic_ns()
        if stats := getattr(request.state, "stats", None):
            stats.model = model
        decision = await self.resolver.decide(model)
        request.state.route, request.state.route_reason = decision.route, decision.reason
        resources = AsyncExitStack()
        upstream = await self._acquire(model, decision, resources)
        if upstream is None:
            raise RouterError(404, UNKNOWN_MODEL, f"model '{model}' not found: no server has it any more")
        load_ns = time.monotonic_ns() - started_ns if decision.route is Route.COORDINATOR else 0
        return UpstreamRequest(model, decision, upstream, resources, started_ns, load_ns)

    async def send(
        self, request: UpstreamRequest, path: str, body: bytes, stack: AsyncExitStack
    ) -> UpstreamResponse:
        """Send ``body`` and return once the response has begun; ``stack`` closes it.

        Nothing has been sent to the client yet. So a request whose server is lost is sent once more: to
        another server of the pool, or to the coordinator after its restart.

        Raises:
            RouterError: the server broke off before it answered, twice; or the request timed out.
        """
        try:
            return await self._attempt(request, path, body, stack)
        except UpstreamLostError as lost:
            if not await self._retry(request, path):
                raise lost.error from None
            log("request_retried", model=request.model, error_class=lost.error.error_class)
        try:
            return await self._attempt(request, path, body, stack)
        except UpstreamLostError as lost:
            raise lost.error from None

    async def read_all(self, request: UpstreamRequest, response: UpstreamResponse) -> bytes:
        """The whole body of a response.

        Raises:
            RouterError: the server broke off in the middle, or the request timed out.
        """
        if not response.streamed:
            return response.first_bytes
        return b"".join([chunk async for chunk in self.relay(request, response)])

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
        except CONNECTION_ERRORS as error:
            if _timed_out(error):
                failure = self._timeout(request)
            else:
                failure = await request.upstream.report_failure(repr(error))
            log("stream_broken", error_class=failure.error_class, message=failure.message)
            raise failure from None

    async def _attempt(
        self, request: UpstreamRequest, path: str, body: bytes, stack: AsyncExitStack
    ) -> UpstreamResponse:
        upstream, timeout_s = request.upstream, self._config.request_timeout_s
        try:
            response = await post(self._session, upstream, path, body, timeout_s=timeout_s)
            stack.callback(response.close)
            if response.status in _UNAVAILABLE and self._alternative(request, path) is not None:
                raise UpstreamLostError(await upstream.report_failure(f"it answered {response.status}"))
            streamed = response.headers.get("content-type", "").startswith(STREAM_TYPES)
            first = await (response.content.readany() if streamed else response.read())
        except CONNECTION_ERRORS as error:
            if _timed_out(error):
                raise self._timeout(request) from None
            raise UpstreamLostError(await upstream.report_failure(repr(error))) from None
        upstream.on_progress()
        return UpstreamResponse(response, first, streamed)

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

    def __init__(self, error: RouterError) -> None:
        super().__init__(error.message)
        self.error = error


def _timed_out(error: BaseException) -> bool:
    """Whether the whole request took too long; a timeout of the connection is a subclass."""
    return type(error) is TimeoutError
