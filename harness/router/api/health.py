"""``/healthz``, ``/readyz`` and ``/metrics``."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from harness.monitor.backend_state import State
from harness.router.config import RouterConfig
from harness.router.coordinator.manager import CoordinatorManager
from harness.router.drained import DrainedNodes
from harness.router.http.metrics import Metrics
from harness.router.nodes.samples import NodeSamples
from harness.router.pool.pool import Pool

_BEST_FIRST = ("ready", "set_aside", "unseen")


@dataclass(eq=False)
class Health:
    """Handlers of liveness, readiness and Prometheus' page."""

    config: RouterConfig
    coordinator: CoordinatorManager
    metrics: Metrics
    nodes: NodeSamples
    pool: Pool

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.prometheus),
        ]

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Whether the router can serve requests: 503 with the reasons where it can serve none.

        Where it serves some models, but no server of the pool serves another, it is ``degraded`` (200).
        """
        servers = self.pool.state
        drained = {"drained_backends": count} if (count := len(self.coordinator.drained.names)) else {}
        if reasons := not_ready(
            self.config, closing=self.coordinator.closing, pool=servers, drained=self.coordinator.drained
        ):
            return JSONResponse({"status": "not ready", "reasons": reasons}, 503, {"retry-after": "5"})
        unreadable = self.coordinator.drained.unreadable
        if unserved := unserved_models(servers) + ([unreadable] if unreadable else []):
            return JSONResponse({"status": "degraded", "reasons": unserved} | drained)
        return JSONResponse({"status": "ready"} | drained)

    async def prometheus(self, request: Request) -> Response:
        """Prometheus' page; states are those of this moment."""
        nodes = [backend.node for backend in self.config.backends]
        states = self.nodes.states(nodes)
        queue = self.coordinator.queue
        self.metrics.show_phase(self.coordinator.state.phase)
        self.metrics.show_queue(len(queue), queue[0].age_s if queue else 0)
        self.metrics.show_states("backend", {node: state.state for node, state in states.items()})
        monitors = {n: "silent" if s.state is State.SILENT else "heard" for n, s in states.items()}
        self.metrics.show_states("node", monitors)
        self.metrics.show_states("pool_server", pool_states(self.pool.state))
        body, content_type = self.metrics.page(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})


def pool_states(servers: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """``ready``, ``set_aside`` or ``unseen`` by node; of several servers on one node the best counts.

    Args:
        servers: as in ``Pool.state``. One that has not answered a probe yet is ``unseen``.
    """
    states: dict[str, str] = {}
    for server in servers:
        state = "set_aside" if server["set_aside_s"] > 0 else "ready" if server["seen"] else "unseen"
        states[server["node"]] = min(state, states.get(server["node"], state), key=_BEST_FIRST.index)
    return states


def unserved_models(servers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why models of the pool are not served: no server that has them answers. Nodes are not named.

    Args:
        servers: as in ``Pool.state``.
    """
    served = {model for server in servers if _answers(server) for model in server["models"]}
    models = {model for server in servers for model in server["models"]}
    reasons = [f"no pool server answers for model {model}" for model in sorted(models - served)]
    unknown = sum(not server["models"] for server in servers)
    return reasons + ([f"{unknown} of the pool's servers have not answered yet"] if unknown else [])


def _answers(server: Mapping[str, Any]) -> bool:
    return bool(server["seen"]) and server["set_aside_s"] <= 0


def not_ready(
    config: RouterConfig,
    *,
    closing: bool,
    pool: Sequence[Mapping[str, Any]] = (),
    drained: DrainedNodes | None = None,
) -> list[str]:
    """Reasons why no request can be served. A coordinator that is not loaded is none: a request loads it.

    Args:
        pool: as in ``Pool.state``.
    """
    if closing:
        return ["the router is stopping"]
    if any(_answers(server) for server in pool):
        return []
    reasons = unserved_models(pool)
    if not config.backends:
        return reasons or ["neither a pool server nor a backend is configured"]
    if drained and drained.blocked:
        return [*reasons, drained.blocked]
    if not os.access(config.llama_server, os.X_OK):
        return [*reasons, f"no llama-server at {config.llama_server}: deploy the role llama_cpp"]
    return []
