"""Model servers behind the router: where a request is sent, what it holds there, and what comes back."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

import aiohttp

from harness.router.config import Route
from harness.router.coordinator.manager import CoordinatorManager, Grant
from harness.router.errors import RouterError
from harness.router.pool.pool import Pool, unreachable
from harness.router.pool.server import Kind, PoolTarget
from harness.router.routing.rule import Decision

_CONNECT_TIMEOUT_S = 10
_REASON_CHARS = 200
_CLIENT_ERRORS = (
    ("image input is not supported", "no_vision", "model '{model}' does not support images"),
    ("audio input is not supported", "no_audio", "model '{model}' does not support audio"),
    ("requires --jinja flag", "no_tools", "the server of model '{model}' runs without tools (--jinja)"),
    ("does not support embeddings", "no_embeddings", "the server of model '{model}' gives no embeddings"),
    ("Pooling type 'none'", "no_embeddings", "the server of model '{model}' gives no embeddings"),
    ("Infill is not supported", "no_insert", "model '{model}' does not support insert (suffix)"),
    ("' is required", "bad_request", "{message}"),
    ("Expected '", "bad_request", "{message}"),
    ("must contain", "bad_request", "{message}"),
    ("must be ", "bad_request", "{message}"),
    ("Only one completion choice is allowed", "bad_request", "{message}"),
    ("unsupported content[].type", "bad_request", "{message}"),
    ("Invalid image_url", "bad_request", "{message}"),
    ("top_logprobs requires", "bad_request", "{message}"),
    ("Cannot use", "bad_request", "{message}"),
    ("Failed to load image", "bad_request", "{message}"),
    ("parse error", "bad_request", "{message}"),
    ("Assistant response prefill", "bad_request", "{message}"),
)
"""Part of the server's message, class of the error, message to the client.

llama-server (b6751, ``tools/server``) answers 500 to many requests that no retry can make right, and clients
retry a 500. An error that a release words differently is relayed unchanged.
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

    @abstractmethod
    async def report_failure(self, reason: str) -> RouterError:
        """Note that it did not answer, or broke off; return the error for the client."""

    @abstractmethod
    def on_progress(self) -> None:
        """Note that it has sent something."""


class PoolUpstream(Upstream):
    """A server of the pool: set aside for a while after a failure."""

    def __init__(self, pool: Pool, target: PoolTarget, model: str) -> None:
        self.url, self.kind, self.key, self.keep_alive = (
            target.url,
            target.kind,
            target.key,
            target.keep_alive,
        )
        self.target = target
        self._pool = pool
        self._model = model

    async def report_failure(self, reason: str) -> RouterError:
        self._pool.failed(self.target, reason)
        return unreachable(self.target, self._model, reason)

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

    @property
    def died(self) -> bool:
        """Whether the process ended though nobody stopped it."""
        return self._instance.died_unexpectedly

    async def report_failure(self, reason: str) -> RouterError:
        return await self._coordinator.describe_failure(self._instance, reason)

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
    load_ns: int = 0
    """How long it waited for the coordinator, loads included."""
    attempt: int = 1

    @property
    def kind(self) -> str:
        return self.upstream.kind

    @property
    def headers(self) -> dict[str, str]:
        retried = {"x-llama-attempt": str(self.attempt)} if self.attempt > 1 else {}
        return route_header(self.decision.route, self.decision.reason) | dict(self.upstream.headers) | retried


@dataclass(frozen=True)
class UpstreamResponse:
    """A server's response once its first bytes have arrived; before that the request can be retried."""

    response: aiohttp.ClientResponse
    first_bytes: bytes
    """The whole body, or the first chunk of a stream."""
    streamed: bool
    """Whether the body is a stream of events."""

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
    session: aiohttp.ClientSession, upstream: Upstream, path: str, body: bytes, *, timeout_s: float
) -> aiohttp.ClientResponse:
    """Send ``body`` unchanged and return once the response's headers have arrived.

    No header of the client is passed on.

    Raises:
        aiohttp.ClientError, ConnectionError: the server cannot be reached, or broke off.
        TimeoutError: the response did not end within ``timeout_s``; also while its body is read.
    """
    headers = {"content-type": "application/json"}
    if not upstream.keep_alive:
        headers["connection"] = "close"
    if upstream.key:
        headers["authorization"] = f"Bearer {upstream.key}"
    url = upstream.url + path
    return await session.post(url, data=body, headers=headers, timeout=_timeout(timeout_s))


@cache
def _timeout(total_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s, connect=_CONNECT_TIMEOUT_S)


def error_message(body: Any) -> str:
    """The message in an error body, OpenAI's or Ollama's."""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "no message")


def client_error(status: int, body: Any, *, model: str) -> RouterError | None:
    """The 400 for a server's 5xx that the request caused; None where the server failed."""
    if status < 500:
        return None
    message = error_message(body)
    for part, error_class, text in _CLIENT_ERRORS:
        if part in message:
            return RouterError(400, error_class, text.format(model=model, message=message))
    return None


def upstream_error(status: int, body: Any, *, model: str) -> RouterError:
    """The error for a response whose status is not 200."""
    return client_error(status, body, model=model) or RouterError(status, "upstream", error_message(body))
