"""What may be asked of a load, and the plan that comes of it."""

import asyncio

from pydantic import BaseModel, ConfigDict, Field

from harness.diagnosis.model import FailureClass
from harness.errors import HarnessError
from harness.models.gguf import GgufModel
from harness.planner.placement import make_plan
from harness.planner.plan import Plan
from harness.planner.supply import BackendMemory
from harness.router.catalogue import Catalogue
from harness.router.command import coordinator_argv, refused_flags, release_args
from harness.router.config import Backend, RouterConfig
from harness.router.errors import RouterError


class LoadRequest(BaseModel):
    """Body of ``POST /admin/load``."""

    model_config = ConfigDict(extra="forbid")

    model: str
    plan: Plan | None = None
    nodes: list[str] | None = Field(None, min_length=1)
    """Backends that the automatic plan may use; all where it is left out."""
    n_gpu_layers: int | None = Field(None, ge=0)
    flags: list[str] = []
    context: int | None = Field(None, gt=0)
    deadline_s: float | None = Field(None, gt=0)
    cold: bool = False
    """Drop the model's page cache on the head node first."""


async def prepare_load(
    request: LoadRequest, catalogue: Catalogue, config: RouterConfig
) -> tuple[Plan, list[str]]:
    """The plan of a load and llama-server's command line for it.

    Raises:
        RouterError: the model is unknown or cannot be read, or ``plan_load`` refuses.
    """
    file = catalogue.find(request.model)
    if file is None:
        known = ", ".join(found.name for found in catalogue.files()) or "none"
        raise RouterError(
            404, "unknown_model", f"no model '{request.model}' on the head node; it has: {known}"
        )
    try:
        header = await asyncio.to_thread(catalogue.header, file)
    except HarnessError as error:
        raise RouterError(422, FailureClass.MODEL_INVALID, str(error)) from None
    plan = plan_load(request, header, config)
    flags = [*release_args(config.llama_server), *config.flags, *request.flags]
    return plan, coordinator_argv(config.llama_server, plan, port=config.coordinator_port, flags=flags)


def plan_load(request: LoadRequest, header: GgufModel, config: RouterConfig) -> Plan:
    """The plan that was given, once checked, or the automatic one.

    Raises:
        RouterError: a refused flag, an unknown node, a plan that is not for this model and these
            backends, or a model that does not fit.
    """
    if refused := refused_flags(request.flags):
        raise RouterError(
            400, "bad_arguments", f"flags that the plan or the router sets: {', '.join(refused)}"
        )
    backends = _chosen_backends(request, config)
    if request.plan is None:
        return _automatic_plan(request, header, backends, config)
    plan = _checked(request.plan, request, header, backends)
    given = {"n_gpu_layers": request.n_gpu_layers, "context": request.context}
    return plan.model_copy(update={key: value for key, value in given.items() if value is not None})


def _chosen_backends(request: LoadRequest, config: RouterConfig) -> list[Backend]:
    known = {backend.node: backend for backend in config.backends}
    if not known:
        raise RouterError(503, "no_backends", "the router's configuration lists no backends")
    if request.nodes is None:
        return config.backends
    if unknown := [node for node in request.nodes if node not in known]:
        raise RouterError(
            400, "unknown_node", f"no backend on {', '.join(unknown)}; there are: {', '.join(known)}"
        )
    return [known[node] for node in dict.fromkeys(request.nodes)]


def _checked(plan: Plan, request: LoadRequest, header: GgufModel, backends: list[Backend]) -> Plan:
    endpoints = {backend.endpoint for backend in backends}
    if strangers := [share.endpoint for share in plan.shares if share.endpoint not in endpoints]:
        raise RouterError(400, "bad_plan", f"the plan uses {', '.join(strangers)}: no backend of ours")
    if plan.model != request.model or plan.model_path != str(header.path):
        raise RouterError(400, "bad_plan", f"the plan is for {plan.model} at {plan.model_path}")
    return plan


def _automatic_plan(
    request: LoadRequest, header: GgufModel, backends: list[Backend], config: RouterConfig
) -> Plan:
    try:
        return make_plan(
            header,
            [BackendMemory(b.node, b.endpoint, b.memory_bytes, b.reserve_bytes) for b in backends],
            context=request.context or config.context,
            n_gpu_layers=request.n_gpu_layers,
        )
    except HarnessError as error:
        raise RouterError(507, "does_not_fit", str(error)) from None
