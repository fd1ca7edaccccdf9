"""The router's HTTP service: routes, keys, errors, and the order in which things start and stop."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import aiohttp
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from harness.common.redirects import refuse_redirects
from harness.common.text import first_error
from harness.errors import HarnessError
from harness.router.api.admin import Admin
from harness.router.api.health import Health
from harness.router.api.ollama.handlers import OllamaApi
from harness.router.api.ollama.models import OllamaModels
from harness.router.api.openai import OpenAiApi
from harness.router.api.resources import ResourcesApi
from harness.router.config import RouterConfig, read_keys
from harness.router.coordinator.factory import create_manager
from harness.router.dashboard.page import Dashboard, Feed
from harness.router.dashboard.snapshot import Snapshots
from harness.router.drained import DrainedNodes
from harness.router.errors import RouterError
from harness.router.failures import Failures
from harness.router.http.auth import Gate
from harness.router.http.json_body import respond_error
from harness.router.http.metrics import Metrics
from harness.router.json_log import log, show_debug
from harness.router.models.catalogue import Catalogue
from harness.router.models.planner import Planner
from harness.router.nodes.backends import BackendWatch
from harness.router.nodes.samples import NodeSamples
from harness.router.pool.crashes import PoolCrashes
from harness.router.pool.pool import Pool
from harness.router.proxy.proxy import Proxy
from harness.router.proxy.upstream import route_header
from harness.router.routing.resolver import RouteResolver
from harness.router.supervisor import TaskSupervisor

_KEEP_ALIVE_S = 4
"""Less than the 5 s after which many servers close: none closes while a request is being sent."""
_READ_BUFFER = 64 * 1024
"""Of an answer; twice as much is read ahead of a client that takes it slowly."""


class Drain:
    """The start of a stop: components that must know of it at once register a callback."""

    def __init__(self) -> None:
        self._callbacks: list[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = []

    def on_begin(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called in the running loop once a stop begins."""
        self._callbacks.append((asyncio.get_running_loop(), callback))

    def begin(self) -> None:
        """A stop begins; a signal handler may call this."""
        for loop, callback in self._callbacks:
            loop.call_soon_threadsafe(callback)


def create_app(config: RouterConfig, drain: Drain) -> Gate:
    """The service, with its keys read.

    Args:
        drain: begun when the service is asked to stop.

    Raises:
        HarnessError: a key file cannot be read.
    """
    router_keys, [admin_key, *_] = read_keys(config.router_key_file), read_keys(config.admin_key_file)
    debug = os.environ.get("SOLLOL_DEBUG_COORDINATOR_RECOVERY", "").strip().lower()
    if config.debug_coordinator_recovery or debug in {"1", "true", "yes", "on"}:
        show_debug()
    metrics = Metrics()
    failures = Failures(config, metrics, several_keys=len(router_keys) > 1)
    sampled = [*(backend.node for backend in config.backends), *(server.node for server in config.pool)]
    nodes = NodeSamples(config.redis, sampled, metrics)
    pool = Pool(
        config.pool,
        TaskSupervisor(metrics.background_task_failed),
        crashes=PoolCrashes(nodes.latest, failures),
        silent_s=config.pool_silent_s,
    )
    catalogue = Catalogue(config.models_dir, config.ollama_models)
    drained = DrainedNodes([backend.node for backend in config.backends], config.state_dir)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
        async with aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            read_bufsize=_READ_BUFFER,
            middlewares=(refuse_redirects,),
        ) as session:
            planner = Planner(config, catalogue, BackendWatch(nodes).samples, drained)
            coordinator = create_manager(config, planner, session, metrics, nodes, failures, drained)
            resolver = RouteResolver(config, catalogue, pool, nodes, planner, lambda: coordinator.loaded)
            await nodes.start()
            await pool.start(session)
            proxy = Proxy(config, resolver, pool, coordinator, session, failures)
            limit = config.body_limit_bytes
            for api in (
                OpenAiApi(proxy, catalogue, body_limit_bytes=limit),
                OllamaApi(proxy, coordinator, body_limit_bytes=limit),
                OllamaModels(config, catalogue, pool, coordinator, proxy, session),
                Admin(coordinator, body_limit_bytes=limit),
                ResourcesApi(config, catalogue, resolver, pool, coordinator, planner, nodes),
                Health(config, coordinator, metrics, nodes, pool),
            ):
                app.router.routes += api.routes
            if config.dashboard:
                snapshots = Snapshots(config, resolver, pool, coordinator, metrics, nodes)
                dashboard = Dashboard(Feed(snapshots.take), admin_key)
                app.router.routes += dashboard.routes
                drain.on_begin(dashboard.feed.close)
            drain.on_begin(coordinator.begin_shutdown)
            log("router_ready", address=config.address, port=config.port, models=await resolver.models())
            try:
                yield
            finally:
                await coordinator.close()
                await pool.close()
                await nodes.close()
                log("router_stopped")

    errors = (RouterError, HarnessError, ValidationError, HTTPException)
    handler = partial(_error_response, metrics)
    app = Starlette(lifespan=lifespan, exception_handlers=dict.fromkeys(errors, handler))
    return Gate(app, router_keys=router_keys, admin_key=admin_key, metrics=metrics, config=config)


async def _error_response(metrics: Metrics, request: Request, error: Exception) -> Response:
    match error:
        case RouterError():
            answer = error
        case ValidationError():
            answer = RouterError(400, "bad_request", first_error(error, root="body"))
        case HTTPException():
            message = f"{request.method} {request.url.path}: {error.detail}"
            answer = RouterError(error.status_code, "no_such_path", message)
        case _:
            answer = RouterError(500, "error", str(error))
    metrics.refused(answer)
    log("request_refused", status=answer.status, error_class=answer.error_class, message=answer.message)
    route = getattr(request.state, "route", None)
    reason = getattr(request.state, "route_reason", "")
    return respond_error(answer, request.url.path, route_header(route, reason) if route else {})
