"""Model servers behind the router: where a request is sent, what it holds there, and what comes back."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import aiohttp

from harness.router.config import Route
from harness.router.coordinator.manager import CoordinatorManager, Grant
from harness.router.errors import RouterError
from harness.router.failures import Fate
from harness.router.http.bodies import Body
from harness.router.in_flight import InFlight, SentRequest
from harness.router.pool.pool import Pool, unreachable
from harness.router.pool.server import Kind, PoolTarget
from harness.router.routing.rule import Decision

_CONNECT_TIMEOUT_S = 10
_REASON_CHARS = 200
_MESSAGE_CHARS = 500
"""Length of a server's message that is passed on: some repeat the whole request."""
_WITHOUT = (
    ("image input is not supported", "no_vision", "model '{model}' does not support images"),
    ("audio input is not supported", "no_audio", "model '{model}' does not support audio"),
    ("requires --jinja flag", "no_tools", "the server of model '{model}' runs without tools (--jinja)"),
    ("does not support embeddings", "no_embeddings", "the server of model '{model}' gives no embeddings"),
    ("Pooling type 'none'", "no_embeddings", "the server of model '{model}' gives no embeddings"),
    ("Infill is not supported", "no_insert", "model '{model}' does not support insert (suffix)"),
)
"""Part of the server's message, class of the error, message to the client: the server can never do this."""
_OWN_FAILURES = (
    "Compute error",
    "Context size has been exceeded",
    "Invalid diff",
    "Invalid input batch",
    "The model produced output",
    "Unable to save slot",
    "Unknown Exception",
    "context shift",
    "failed to decode",
    "failed to find a memory slot",
    "failed to get embeddings",
    "failed to get logits",
    "failed to process",
    "got exception",
    "speculative batch",
    "std::bad_alloc",
    "the current context does not",
    "unknown error",
)
"""Beginnings of the messages by which llama-server reports its own failure: to compute, to decode, memory.

Every other message of type ``server_error`` (b6666 to b11549, ``tools/server`` and ``common``) is an
exception over what the request says: it answers 500, and clients would retry what no retry can make right.
"""


class Upstream(ABC):
    """One server that a request is sent to."""

    url: str
    """Its address, without a path."""
    kind: Kind = "openai"
    """The API that it speaks; for ``ollama``, ``/api`` needs no conversion."""
    key: str | None = None
    """Its bearer key."""
    keep_alive = False
    """Whether the connection may stay open for the next request."""
    headers: Mapping[str, str] = {}
    """Headers of the response that say how the request got this server."""

    @property
    @abstractmethod
    def build(self) -> int | None:
        """Release number of the llama-server; None where it is not known."""

    sent: InFlight
    """The requests that it has."""

    @abstractmethod
    async def report_failure(self, reason: str) -> RouterError:
        """Note that it did not answer, or broke off; return the error for the client."""

    @abstractmethod
    async def fate(self, request: SentRequest) -> Fate:
        """What became of it, once it has broken ``request`` off and that has been reported.

        Waits some seconds where only its node can say.
        """

    def look_later(self, request: SentRequest) -> None:  # noqa: B027 - the coordinator's end is known at once
        """Find its fate in the background."""

    @abstractmethod
    def on_progress(self) -> None:
        """Note that it has sent something."""


class PoolUpstream(Upstream):
    """A server of the pool: set aside for a while after a failure."""

    def __init__(self, pool: Pool, target: PoolTarget, model: str) -> None:
        self.url, self.kind, self.key = target.url, target.kind, target.key
        self.keep_alive = target.keep_alive
        self.target = target
        self.sent = pool.sent_to(target)
        self._pool = pool
        self._model = model

    @property
    def build(self) -> int | None:
        return self._pool.build(self.target)

    async def report_failure(self, reason: str) -> RouterError:
        self._pool.failed(self.target, reason)
        return unreachable(self.target, self._model, reason)

    async def fate(self, request: SentRequest) -> Fate:
        return await self._pool.fate(self.target, request)

    def look_later(self, request: SentRequest) -> None:
        self._pool.look_later(self.target, request)

    def on_progress(self) -> None:
        self._pool.succeeded(self.target)


class CoordinatorUpstream(Upstream):
    """The coordinator, granted to one request.

    llama-server gives each open connection one of its few threads, so its connections are not kept.
    """

    def __init__(self, coordinator: CoordinatorManager, grant: Grant) -> None:
        self.url, self.headers = grant.url, grant.headers
        self._coordinator = coordinator
        self._instance = grant.instance
        self.sent = grant.instance.sent

    @property
    def build(self) -> int | None:
        report = self._instance.state.report
        return report.build if report else None

    @property
    def died(self) -> bool:
        """Whether the process ended though nobody stopped it."""
        return self._instance.died_unexpectedly

    async def report_failure(self, reason: str) -> RouterError:
        return await self._coordinator.describe_failure(self._instance, reason)

    async def fate(self, request: SentRequest) -> Fate:
        if poison := self._instance.poison:
            return Fate.POISONED if poison.digest == request.digest else Fate.NOTHING
        return Fate.LOST if self.died and not self._instance.by_request else Fate.NOTHING

    def on_progress(self) -> None:
        self._instance.mark_progress()


@dataclass
class UpstreamRequest:
    """One client's request: how it was routed, which server has it now, and what it holds."""

    model: str
    decision: Decision
    upstream: Upstream
    resources: AsyncExitStack
    """Released when the response has been sent."""
    started_ns: int
    """On the monotonic clock."""
    request_id: str = ""
    key: str = ""
    """Names the client's key without showing it."""
    lost: list[tuple[Upstream, SentRequest]] = field(default_factory=list)
    """Servers that broke it off, and what each had been sent."""
    load_ns: int = 0
    """How long it waited for the coordinator, loads included."""
    attempt: int = 1
    last: bool = False
    """Whether it is not sent once more."""
    body_for_server: Callable[["UpstreamRequest"], Awaitable[Body]] | None = None
    """Makes the body for the server that has it now; None: every server may get the same body."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Headers that name what that server does not get."""

    @property
    def kind(self) -> str:
        return self.upstream.kind

    @property
    def headers(self) -> dict[str, str]:
        retried = {"x-llama-attempt": str(self.attempt)} if self.attempt > 1 else {}
        route = route_header(self.decision.route, self.decision.reason)
        return route | dict(self.upstream.headers) | retried | dict(self.ignored)


@dataclass(frozen=True)
class UpstreamResponse:
    """A server's response once its first bytes have arrived; before that the request can be retried."""

    response: aiohttp.ClientResponse
    first_bytes: bytes
    """The whole body, or the first chunk of a stream."""
    streamed: bool
    """Whether the body is a stream of events."""
    sent: SentRequest

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """HTTP headers; names match in any case."""
        return self.response.headers


def route_header(route: Route, reason: str = "") -> dict[str, str]:
    """The headers that name a request's route and its reason, on responses and on errors."""
    text = " ".join(reason.encode("ascii", "replace").decode().split())[:_REASON_CHARS]
    return {"x-llama-route": route} | ({"x-llama-route-reason": text} if text else {})


async def post(
    session: aiohttp.ClientSession, upstream: Upstream, path: str, body: Body, *, timeout_s: float
) -> aiohttp.ClientResponse:
    """Send ``body`` unchanged and return once the response's headers have arrived.

    No header of the client is passed on.

    Raises:
        aiohttp.ClientError, ConnectionError: the server cannot be reached, or broke off.
        TimeoutError: the response did not end within ``timeout_s``; also while its body is read.
        RouterError: its status is not 200, 4xx or 5xx (502).
    """
    headers = {"content-type": "application/json", "content-length": str(body.size)}
    if not upstream.keep_alive:
        headers["connection"] = "close"
    if upstream.key:
        headers["authorization"] = f"Bearer {upstream.key}"
    url = upstream.url + path
    response = await session.post(url, data=body.payload(), headers=headers, timeout=_timeout(timeout_s))
    if response.status != 200 and not 400 <= response.status < 600:
        response.close()
        raise RouterError(502, "upstream", f"the server answered with status {response.status}")
    return response


@cache
def _timeout(total_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s, connect=_CONNECT_TIMEOUT_S)


def error_message(body: Any) -> str:
    """The message in an error body, OpenAI's or Ollama's."""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) and message else "no message"


def client_error(status: int, body: Any, *, model: str) -> RouterError | None:
    """The 400 for a llama-server's 5xx that the request caused; None where the server failed."""
    if status < 500:
        return None
    message = error_message(body)
    for part, error_class, text in _WITHOUT:
        if part in message:
            return RouterError(400, error_class, text.format(model=model))
    error = body.get("error") if isinstance(body, dict) else None
    exception = status == 500 and isinstance(error, dict) and error.get("type") == "server_error"
    if not exception or message.startswith(_OWN_FAILURES):
        return None
    return RouterError(400, "bad_request", message[:_MESSAGE_CHARS])


def upstream_error(status: int, body: Any, *, model: str) -> RouterError:
    """The error for a response whose status is not 200."""
    message = error_message(body)[:_MESSAGE_CHARS]
    return client_error(status, body, model=model) or RouterError(status, "upstream", message)
