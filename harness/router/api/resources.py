"""``/admin``: the models, backends and pool servers, and what a load of a model would be."""

import asyncio
from dataclasses import dataclass

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from harness.contracts import Record
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.plan import LoadRequest, Offer
from harness.errors import HarnessError
from harness.llama.rpc.discovery import MAX_ADDRESSES
from harness.planner.device_capacity import Calibration
from harness.planner.forecast import cached_tensors, forecast_load
from harness.router.api.admin import parse_body
from harness.router.config import RouterConfig
from harness.router.coordinator.manager import CoordinatorManager
from harness.router.errors import RouterError
from harness.router.models.catalogue import Catalogue
from harness.router.models.planner import Planner, ReplacedProcess
from harness.router.nodes.discovery import find_backends, installed_protocol, known_backends
from harness.router.nodes.samples import NodeSamples
from harness.router.pool.pool import Pool
from harness.router.routing.resolver import ListedModel, RouteResolver
from harness.settings import RPC_PORT

_NOT_RUNNING = (CoordinatorPhase.ABSENT, CoordinatorPhase.ENDED)


class DiscoverRequest(Record):
    """Query of ``GET /admin/discover``; ``cidr`` may be repeated."""

    cidr: list[str] = Field([])
    port: int = Field(RPC_PORT, ge=1, le=65535)
    limit: int = Field(MAX_ADDRESSES, ge=1, le=65536)
    force: bool = False


@dataclass(eq=False)
class ResourcesApi:
    """Handlers of ``/admin`` that load nothing, and of ``/router/decisions``."""

    config: RouterConfig
    catalogue: Catalogue
    resolver: RouteResolver
    pool: Pool
    coordinator: CoordinatorManager
    planner: Planner
    nodes: NodeSamples

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/admin/models", self.models),
            Route("/admin/plan", self.plan, methods=["POST"]),
            Route("/admin/calibration", self.calibration, methods=["GET", "POST", "DELETE"]),
            Route("/admin/discover", self.discover),
            Route("/admin/pool", self.pool_servers),
            Route("/router/decisions", self.decisions),
        ]

    async def models(self, request: Request) -> Response:
        """Every model, its file and its route: those of the head node first."""
        models = sorted(await self.resolver.listing(), key=lambda model: model.file is None)
        return JSONResponse({"models": await asyncio.to_thread(self._model_entries, models)})

    def _model_entries(self, listed: list[ListedModel]) -> list[dict[str, object]]:
        entries = []
        for model in listed:
            entry: dict[str, object] = {
                "name": model.name,
                "path": str(model.file.path) if model.file else None,
                "file_bytes": model.file.file_bytes if model.file else None,
                "route": model.route,
                "route_reason": model.reason,
            }
            if model.file:
                try:
                    header = self.catalogue.header(model.file)
                    entry |= {
                        "layers_total": header.block_count + 1,
                        "architecture": header.architecture,
                        "quantisation": header.quantisation,
                        "synthetic": header.synthetic,
                    }
                except HarnessError as error:
                    entry["error"] = str(error)
            entries.append(entry)
        return entries

    async def plan(self, request: Request) -> Response:
        """The plan of a load as in ``/admin/load``, its forecast, and where memory was read. Loads nothing.

        With ``?keep=true`` the next load of the model is split so, and the answer says which parts of the
        file the nodes' tensor caches would hold.
        """
        state = self.coordinator.state
        replaces = None if state.phase in _NOT_RUNNING else ReplacedProcess.read(state.pid)
        body = await parse_body(request, LoadRequest, self.config.body_limit_bytes)
        planned = await self.planner.prepare(body, replaces=replaces)
        plan, head = planned.plan, self.config.head_node or ""
        offer = Offer(
            plan=plan,
            forecast=forecast_load(planned.header, plan, head),
            head=head,
            memory_from={
                share.node: "monitor" if share.node in planned.sampled else "inventory"
                for share in plan.shares
            },
        )
        if request.query_params.get("keep") == "true":
            self.planner.keep(planned)
            placed = cached_tensors(planned.header, plan)
            offer.tensors = {node: [(t.offset, t.bytes) for t in tensors] for node, tensors in placed.items()}
        return Response(offer.model_dump_json(), media_type="application/json")

    async def calibration(self, request: Request) -> Response:
        """The nodes' speeds; a POST adds or replaces some, a DELETE forgets all."""
        store = self.planner.plan_store
        if request.method == "DELETE":
            store.calibrate(Calibration())
        if request.method == "POST":
            added = await parse_body(request, Calibration, self.config.body_limit_bytes)
            nodes = {backend.node for backend in self.config.backends}
            if unknown := [speed.node for speed in added.nodes if speed.node not in nodes]:
                raise RouterError(400, "unknown_node", f"no backend on {', '.join(unknown)}")
            store.calibrate(store.calibration.with_nodes(added.nodes))
        return JSONResponse(store.calibration.model_dump(mode="json"))

    async def discover(self, request: Request) -> Response:
        """The backends, and what else answers in the given networks; none in use is connected to."""
        query = request.query_params
        search = DiscoverRequest.model_validate(dict(query) | {"cidr": query.getlist("cidr")})
        in_use = {
            backend.endpoint: reason
            for backend in self.config.backends
            if (reason := self.nodes.in_use(backend.node))
        }
        try:
            probes = await find_backends(
                known_backends(self.config),
                search.cidr,
                in_use=in_use | _leased(self.coordinator.state),
                expected=installed_protocol(self.config.llama_server),
                port=search.port,
                limit=search.limit,
                force=search.force,
            )
        except HarnessError as error:
            raise RouterError(400, "bad_request", str(error)) from None
        return JSONResponse({"backends": [probe.as_dict() for probe in probes]})

    async def pool_servers(self, request: Request) -> Response:
        return JSONResponse({"servers": self.pool.state})

    async def decisions(self, request: Request) -> Response:
        return JSONResponse({"decisions": self.resolver.last})


def _leased(state: CoordinatorState) -> dict[str, str]:
    """Endpoints that the coordinator of this router uses, or is about to use."""
    if state.plan is None or state.phase in _NOT_RUNNING:
        return {}
    return {share.endpoint: f"leased to our coordinator ({state.model})" for share in state.plan.shares}
