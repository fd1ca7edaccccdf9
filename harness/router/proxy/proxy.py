"""The proxy: routes a request, sends it to a server, retries it once, and relays the response as bytes."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, nullcontext

import aiohttp
from starlette.requests import Request

from harness.router.config import Route, RouterConfig
from harness.router.coordinator.manager import CoordinatorManager
from harness.router.errors import CONNECTION_ERRORS, UNKNOWN_MODEL, RouterError
from harness.router.failures import Failures, Fate
from harness.router.http.answers import read_answer, too_long
from harness.router.http.bodies import Body
from harness.router.http.quotas import usage_of
from harness.router.http.stream_stats import STREAM_TYPES
from harness.router.in_flight import SentRequest, digest_of
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
        One that may have ended a server before is sent once, in its turn, which ``stack`` ends.

        Raises:
            RouterError: the server broke off before it answered, twice; the request timed out or had no turn;
                it, or the same one before, ended its server.
        """
        sent, first = await self._sent(request, path, body), None
        if not self._failures.suspects(sent):
            try:
                return await self._attempt(request, path, body, sent, stack)
            except UpstreamLostError as lost:
                first = lost
            if first.poison:
                raise first.error
        await request.resources.aclose()  # what it holds would keep those before it from their turns
        turn = await stack.enter_async_context(self._failures.turn(sent))
        self._failures.check(sent)
        await self._acquire_again(request, path, first)
        turn.begin()
        if request.body_for_server:
            body = await request.body_for_server(request)  # it may be of another kind or build
        try:
            return await self._attempt(request, path, body, await self._sent(request, path, body), stack)
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
            self._failures.answered(response.sent)
        except CONNECTION_ERRORS as error:
            if _timed_out(error):
                failure = self._timeout(request)
            else:
                failure = (await self._lost(request, response.sent, error, path=None)).error
            log("stream_broken", error_class=failure.error_class, message=failure.message)
            raise failure from None

    async def _sent(self, request: UpstreamRequest, path: str, body: Body) -> SentRequest:
        digest = await digest_of(path, body)
        model = request.decision.model or request.model
        sent = SentRequest(request.request_id, request.key, digest, model, again=request.last)
        self._failures.check(sent)
        return sent

    async def _attempt(
        self, request: UpstreamRequest, path: str, body: Body, sent: SentRequest, stack: AsyncExitStack
    ) -> UpstreamResponse:
        upstream, timeout_s = request.upstream, self._config.request_timeout_s
        upstream.sent.add(sent)
        stack.callback(upstream.sent.end, sent)
        try:
            response = await post(self._session, upstream, path, body, timeout_s=timeout_s)
            stack.callback(response.close)
            if response.status in _UNAVAILABLE and self._alternative(request, path) is not None:
                upstream.sent.end(sent, answered=True)
                reason = f"it answered {response.status}"
                raise UpstreamLostError(await upstream.report_failure(reason), sent)
            streamed = response.headers.get("content-type", "").startswith(STREAM_TYPES)
            reading = response.content.readany() if streamed else read_answer(response, self._answer_bytes)
            first = await reading
        except CONNECTION_ERRORS as error:
            if _timed_out(error):
                raise self._timeout(request) from None
            raise await self._lost(request, sent, error, path=path) from None
        upstream.on_progress()
        if not streamed:
            upstream.sent.end(sent, answered=True)
            if response.status == 200:
                self._failures.answered(sent)
        return UpstreamResponse(response, first, streamed, sent)

    async def _lost(
        self, request: UpstreamRequest, sent: SentRequest, error: BaseException, *, path: str | None
    ) -> "UpstreamLostError":
        """The error for a request whose server broke off; blames a request that ended it, or two of them.

        A request that another server of the pool can have does not wait for that.

        Args:
            path: where the request can be sent again, if its answer has not begun.
        """
        upstream = request.upstream
        failure = await upstream.report_failure(repr(error))
        if isinstance(error, aiohttp.ClientConnectorError):
            upstream.sent.end(sent, answered=True)  # it never had the request
            return UpstreamLostError(failure, sent)
        request.lost.append((upstream, sent))
        if path and self._alternative(request, path):
            upstream.look_later(sent)
            upstream.sent.end(sent)
            return UpstreamLostError(failure, sent)
        fates = [await server.fate(had) for server, had in request.lost]
        poison = Fate.POISONED in fates
        if (
            fates.count(Fate.LOST) > 1
            and len({r.digest for r in upstream.sent.at(time.time_ns()) if r.again}) == 1
        ):
            poison = True
            message = f"{sent} was in flight when its server was lost, and again when it was sent once more"
            node = upstream.target.node if isinstance(upstream, PoolUpstream) else None
            had = upstream.sent.at(time.time_ns())
            self._failures.blame(sent, message, had, node=node, diagnosis=failure.diagnosis)
        upstream.sent.end(sent)
        return UpstreamLostError(self._failures.refusal(sent) if poison else failure, sent, poison=poison)

    async def _acquire_again(
        self, request: UpstreamRequest, path: str, first: "UpstreamLostError | None"
    ) -> None:
        """Acquire a server for the last attempt.

        Raises:
            RouterError: that of the first attempt, where there is no other server.
        """
        upstream = request.upstream
        if isinstance(upstream, CoordinatorUpstream):
            if first and not upstream.died:
                raise first.error
            request.upstream = await self._acquire_coordinator(request.decision.model, request.resources)
            request.load_ns = time.monotonic_ns() - request.started_ns
        elif isinstance(upstream, PoolUpstream):
            other = self._alternative(request, path, lost=first is not None)
            if first and not other:
                raise first.error
            request.upstream = other = other or upstream
            request.resources.enter_context(self._pool.use(other.target))
        request.last = True
        if first:
            request.attempt += 1
            log("request_retried", model=request.model, error_class=first.error.error_class)

    def _alternative(self, request: UpstreamRequest, path: str, *, lost: bool = True) -> PoolUpstream | None:
        """The server of the pool for a request's last attempt: another one where the first was lost."""
        if request.last or request.decision.route is not Route.POOL:
            return None
        exclude = request.upstream.url if lost else None
        target = self._pool.pick(request.model, request.decision.servers, exclude=exclude)
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

    def __init__(self, error: RouterError, sent: SentRequest, *, poison: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.sent = sent
        self.poison = poison
        """Whether the request is the cause."""


def _timed_out(error: BaseException) -> bool:
    """Whether the whole request took too long; a timeout of the connection is a subclass."""
    return type(error) is TimeoutError
