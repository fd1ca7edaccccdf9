"""``/admin/plan`` and ``/admin/calibration``: what a load would be, and how fast the nodes are."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from harness.contracts.load_request import LoadRequest
from harness.contracts.plan_offer import Offer
from harness.planner.calibration import Calibration
from harness.planner.forecast import Rates, forecast_load
from harness.router.config import RouterConfig
from harness.router.errors import RouterError
from harness.router.models.planner import Planner
from harness.router.proxy.upstream import read_body
from harness.tensor_cache.placement import cached_tensors


class PlanningApi:
    """Handlers that plan without loading anything."""

    def __init__(self, config: RouterConfig, planner: Planner) -> None:
        self._config = config
        self._planner = planner

    async def plan(self, request: Request) -> Response:
        """The plan of a load, asked for as in ``/admin/load``, its forecast, and where memory was read.

        With ``?keep=true`` the next load of the model is split so, and the answer says which parts of the
        file the nodes' tensor caches would hold.
        """
        asked = LoadRequest.model_validate_json(await read_body(request, self._config.body_limit_bytes))
        planned = await self._planner.prepare(asked)
        plan = planned.plan
        own = f"{self._config.address}:"
        head = next(
            (backend.node for backend in self._config.backends if backend.endpoint.startswith(own)), ""
        )
        forecast = forecast_load(planned.header, plan, head, Rates())
        read = {
            share.node: "monitor" if share.node in planned.sampled else "inventory" for share in plan.shares
        }
        offer = Offer(plan=plan, forecast=forecast, head=head, memory_from=read)
        if request.query_params.get("keep") == "true":
            self._planner.keep(planned)
            found = cached_tensors(planned.header, plan)
            offer.tensors = {node: [(t.offset, t.bytes) for t in tensors] for node, tensors in found.items()}
        return Response(offer.model_dump_json(), media_type="application/json")

    async def calibration(self, request: Request) -> Response:
        """What is known of the nodes' speeds; a POST adds or replaces some, a DELETE forgets all."""
        knowledge = self._planner.knowledge
        if request.method == "DELETE":
            knowledge.forget_speeds()
        if request.method == "POST":
            body = await read_body(request, self._config.body_limit_bytes)
            added = Calibration.model_validate_json(body)
            known = {backend.node for backend in self._config.backends}
            if unknown := [one.node for one in added.nodes if one.node not in known]:
                raise RouterError(400, "unknown_node", f"no backend on {', '.join(unknown)}")
            knowledge.calibrate(knowledge.calibration.with_nodes(added.nodes))
        return JSONResponse(knowledge.calibration.model_dump(mode="json"))
