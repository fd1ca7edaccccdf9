"""What may be asked of a load, and whether it may be."""

import asyncio

from harness.contracts.diagnosis import FailureClass
from harness.contracts.load_request import LoadRequest
from harness.contracts.plan import Plan
from harness.errors import HarnessError
from harness.llama.gguf import GgufModel
from harness.llama.ollama_storage import same_model
from harness.router.config import Backend, RouterConfig
from harness.router.errors import RouterError
from harness.router.models.catalogue import Catalogue
from harness.router.models.command_line import refused_flags


async def read_header(model: str, catalogue: Catalogue) -> tuple[str, GgufModel]:
    """What the head node calls a model, however it was asked for, and the facts of its file.

    Raises:
        RouterError: the model is unknown or cannot be read.
    """
    try:
        if file := catalogue.find(model):
            return file.name, await asyncio.to_thread(catalogue.header, file)
    except HarnessError as error:
        raise RouterError(422, FailureClass.MODEL_INVALID, str(error)) from None
    known = ", ".join(found.name for found in catalogue.files()) or "none"
    raise RouterError(404, "unknown_model", f"no model '{model}' on the head node; it has: {known}")


def check_flags(request: LoadRequest) -> None:
    """Refuse flags that the plan or the router sets.

    Raises:
        RouterError: there is one (400).
    """
    if refused := refused_flags(request.flags):
        raise RouterError(
            400, "bad_arguments", f"flags that the plan or the router sets: {', '.join(refused)}"
        )


def chosen_backends(request: LoadRequest, config: RouterConfig) -> list[Backend]:
    """Backends that a load may use, in the configuration's order of names as asked.

    Raises:
        RouterError: there are none (503), or one that is asked for is none of ours (400).
    """
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


def checked_plan(plan: Plan, request: LoadRequest, header: GgufModel, backends: list[Backend]) -> Plan:
    """The plan that came with a request, with what the request changes of it.

    Raises:
        RouterError: it is for another model, or uses a backend that is not ours (400).
    """
    endpoints = {backend.endpoint for backend in backends}
    if strangers := [share.endpoint for share in plan.shares if share.endpoint not in endpoints]:
        raise RouterError(400, "bad_plan", f"the plan uses {', '.join(strangers)}: no backend of ours")
    if same_model(plan.model) != same_model(request.model) or plan.model_path != str(header.path):
        raise RouterError(400, "bad_plan", f"the plan is for {plan.model} at {plan.model_path}")
    given = {"model": request.model, "n_gpu_layers": request.n_gpu_layers, "context": request.context}
    return plan.model_copy(update={key: value for key, value in given.items() if value is not None})
