"""The router's HTTP service: routes, keys, errors, and the order in which things start and stop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from harness.errors import HarnessError
from harness.router.api.admin import Admin, bad_body
from harness.router.api.health import Operation
from harness.router.api.ollama.handlers import OllamaApi
from harness.router.api.ollama.models import OllamaModels
from harness.router.api.openai import OpenAiApi
from harness.router.api.planning import PlanningApi
from harness.router.app_drain import Drain
from harness.router.config import RouterConfig, read_key, read_keys
from harness.router.coordinator.coordinator import Coordinator
from harness.router.dashboard.page import Dashboard
from harness.router.dashboard.snapshot import Sources
from harness.router.errors import RouterError
from harness.router.http.auth import Gate
from harness.router.http.json_body import respond
from harness.router.http.limits import limits_of
from harness.router.http.metrics import Metrics
from harness.router.http.shortcut import Shortcut
from harness.router.logs import log
from harness.router.models.catalogue import Catalogue
from harness.router.nodes.samples import node_samples
from harness.router.pool.pool import Pool
from harness.router.proxy.proxy import Exchange, route_header
from harness.router.routing.resolver import Decider

_KEEP_ALIVE_S = 4
"""Less than the 5 s after which many servers close: none closes on a request that is just being sent."""
_READ_BUFFER = 1024 * 1024
"""One event of a stream fits into this."""


def create_app(config: RouterConfig, drain: Drain) -> ASGIApp:
    """The service, with its keys read.

    Args:
        drain: begun when the service is told to stop.

    Raises:
        HarnessError: a key file cannot be read.
    """
    router_keys, admin_key = read_keys(config.router_key_file), read_key(config.admin_key_file)
    metrics = Metrics()
    pool, catalogue = Pool(config.pool), Catalogue(config.models_dir, config.ollama_models)
    nodes = node_samples(config.redis)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
        async with aiohttp.ClientSession(
            connector=connector, auto_decompress=False, read_bufsize=_READ_BUFFER
        ) as session:
            coordinator = Coordinator(config, catalogue, session, metrics, nodes)
            decider = Decider(config, catalogue, pool, nodes, coordinator.planner, lambda: coordinator.loaded)
            await pool.start(session)
            exchange = Exchange(config, decider, pool, coordinator, session)
            admin = Admin(config, catalogue, exchange, decider, pool, coordinator, nodes)
            limit = config.body_limit_bytes
            app.router.routes += OpenAiApi(exchange, catalogue, body_limit_bytes=limit).routes
            app.router.routes += OllamaApi(exchange, coordinator, body_limit_bytes=limit).routes
            about = OllamaModels(config, catalogue, pool, coordinator, exchange, session)
            app.router.routes += about.routes
            _add_admin(app, admin)
            _add_planning(app, PlanningApi(config, coordinator.planner))
            _add_operation(app, Operation(config, coordinator, metrics, nodes, pool))
            if config.dashboard:
                sources = Sources(config, catalogue, decider, pool, coordinator, metrics, nodes)
                dashboard = Dashboard(sources, admin_key)
                app.router.routes += dashboard.routes
                drain.tell(dashboard.feed.close)
            drain.tell(coordinator.refuse)
            log("router ready", address=config.address, port=config.port, models=exchange.models())
            try:
                yield
            finally:
                await coordinator.close()
                await pool.close()
                await nodes.close()
                log("router stopped")

    handlers = {
        RouterError: _router_error,
        HarnessError: _harness_error,
        ValidationError: _validation_error,
        HTTPException: _no_such_path,
    }
    app = Starlette(lifespan=lifespan, exception_handlers=handlers)  # type: ignore[arg-type]
    return Gate(
        Shortcut(app),
        router_keys=router_keys,
        admin_key=admin_key,
        metrics=metrics,
        limits=limits_of(config),
    )


def _add_admin(app: Starlette, admin: Admin) -> None:
    app.router.routes += [
        Route("/admin/load", admin.load, methods=["POST"]),
        Route("/admin/unload", admin.unload, methods=["POST"]),
        Route("/admin/hold", admin.hold, methods=["POST"]),
        Route("/admin/resume", admin.resume, methods=["POST"]),
        Route("/admin/coordinator", admin.coordinator),
        Route("/admin/lease", admin.lease, methods=["POST", "DELETE"]),
        Route("/admin/starts", admin.starts),
        Route("/admin/queue", admin.queue),
        Route("/admin/failures", admin.failures),
        Route("/admin/process", admin.process),
        Route("/admin/logs/{start_id}", admin.logs),
        Route("/admin/models", admin.models),
        Route("/admin/discover", admin.discover),
        Route("/admin/pool", admin.pool),
        Route("/router/decisions", admin.decisions),
    ]


def _add_planning(app: Starlette, planning: PlanningApi) -> None:
    app.router.routes += [
        Route("/admin/plan", planning.plan, methods=["POST"]),
        Route("/admin/calibration", planning.calibration, methods=["GET", "POST", "DELETE"]),
    ]


def _add_operation(app: Starlette, operation: Operation) -> None:
    app.router.routes += [
        Route("/healthz", operation.healthz),
        Route("/readyz", operation.readyz),
        Route("/metrics", operation.metrics),
    ]


async def _router_error(request: Request, error: RouterError) -> Response:
    log("refused", status=error.status, error_class=error.error_class, message=error.message)
    body = error.ollama_body() if request.url.path.startswith("/api/") else error.body()
    route = getattr(request.state, "route", None)
    why = getattr(request.state, "route_reason", "")
    headers = error.headers | (route_header(route, why) if route else {})
    return respond(body, error.status, headers)


async def _harness_error(request: Request, error: HarnessError) -> Response:
    return await _router_error(request, RouterError(500, "error", str(error)))


async def _no_such_path(request: Request, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path}: {error.detail}"
    return await _router_error(request, RouterError(error.status_code, "no_such_path", message))


async def _validation_error(request: Request, error: ValidationError) -> Response:
    return await _router_error(request, bad_body(error))
