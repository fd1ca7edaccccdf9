"""What those who run the router ask it: is it alive, can it take work, what has it counted."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from harness.monitor.backend_state import BackendState, State
from harness.router.config import RouterConfig
from harness.router.coordinator.coordinator import Coordinator
from harness.router.http.metrics import Metrics
from harness.router.nodes.samples import NodeSamples
from harness.router.pool.pool import Pool

_BEST_FIRST = ("ready", "set_aside", "unseen")


class Operation:
    """Handlers of ``/healthz``, ``/readyz`` and ``/metrics``."""

    def __init__(
        self,
        config: RouterConfig,
        coordinator: Coordinator,
        metrics: Metrics,
        nodes: NodeSamples,
        pool: Pool,
    ) -> None:
        self._config = config
        self._coordinator = coordinator
        self._metrics = metrics
        self._nodes = nodes
        self._pool = pool

    async def healthz(self, request: Request) -> Response:
        """It answers, so it is alive."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Whether it can take work; 503 with the reasons where it cannot."""
        reasons = not_ready(self._config, closing=self._coordinator.closing)
        if reasons:
            return JSONResponse({"status": "not ready", "reasons": reasons}, 503, {"retry-after": "5"})
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Prometheus' page; states are those of this moment."""
        names = [backend.node for backend in self._config.backends]
        await self._nodes.refresh(names)
        states = self._nodes.states(names)
        queue = self._coordinator.queue
        self._metrics.show_phase(self._coordinator.state.phase)
        self._metrics.show_queue(len(queue), queue[0].age_s if queue else 0)
        self._metrics.show_states("backend", {node: seen.state for node, seen in states.items()})
        self._metrics.show_states("node", {node: _node_state(seen) for node, seen in states.items()})
        self._metrics.show_states("pool_server", pool_states(self._pool.state))
        body, content_type = self._metrics.page(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})


def _node_state(backend: BackendState) -> str:
    return "silent" if backend.state is State.SILENT else "heard"


def pool_states(servers: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """``ready``, ``set_aside`` or ``unseen`` by node; of several servers on one node the best counts.

    Args:
        servers: as ``Pool.state`` gives them. One that has not answered a look yet is ``unseen``.
    """
    states: dict[str, str] = {}
    for server in servers:
        state = "set_aside" if server["set_aside_s"] > 0 else "ready" if server["seen"] else "unseen"
        states[server["node"]] = min(state, states.get(server["node"], state), key=_BEST_FIRST.index)
    return states


def not_ready(config: RouterConfig, *, closing: bool) -> list[str]:
    """Why no request can be served; empty where one can.

    A coordinator that is not loaded is no reason: a request loads it.
    """
    if closing:
        return ["the router is stopping"]
    if config.pool:
        return []
    if not config.backends:
        return ["neither a pool server nor a backend is configured"]
    if not os.access(config.llama_server, os.X_OK):
        return [f"no llama-server at {config.llama_server}: deploy the role llama_cpp"]
    return []
