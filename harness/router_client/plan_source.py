"""The plan of a load: from the router, else from a model file here and the nodes' memory over SSH."""

import asyncio
from pathlib import Path

from harness.cluster.inventory import Inventory, Node, load_inventory
from harness.cluster.node_inspection import read_state
from harness.common.text import parse_size
from harness.contracts.plan import LoadRequest, Offer
from harness.errors import HarnessError
from harness.router_client.client import RouterClient, RouterKeyError, RouterRefusedError, router_address

CONTEXT = 2048
"""Tokens of a load that states none, as in a router that is not configured otherwise."""


async def request_plan(path: Path, request: LoadRequest) -> Offer:
    """The plan of a load on an inventory.

    The router knows the monitors' figures, the nodes' speeds and what earlier loads taught. Where it does not
    answer, or the model is a file here that it does not have, the plan is made here from the nodes' memory.

    Raises:
        HarnessError: the router refuses the admin key, the model is neither there nor here, does not fit, or
            no node can be reached.
    """
    inventory = load_inventory(path)
    try:
        async with RouterClient(router_address(inventory)) as router:
            return await router.plan(request)
    except RouterKeyError:
        raise  # the figures of the nodes would hide that the key is wrong
    except RouterRefusedError as refused:
        if refused.failure_class != "unknown_model":
            raise
        reason: HarnessError = refused
    except HarnessError as error:
        reason = error
    return await _plan_here(inventory, request, reason)


async def _plan_here(inventory: Inventory, request: LoadRequest, reason: HarnessError) -> Offer:
    # Imported here: where the router answers, none of it is needed.
    from harness.models import resolve_model
    from harness.planner.device_capacity import DeviceCapacity
    from harness.planner.forecast import forecast_load
    from harness.planner.placement import head_share, make_plan

    try:
        header = resolve_model(request.model).gguf
    except HarnessError as error:
        raise HarnessError(f"{reason}; and here: {error}") from None
    backends, read = await _backends(inventory)
    head = inventory.head
    devices = [
        DeviceCapacity(node.name, node.rpc_endpoint, size, head_share(header) if node == head else None)
        for node, size in backends
    ]
    pin = head.variables.get("llama_cpp_build")
    plan = make_plan(
        header,
        devices,
        request.context or CONTEXT,
        request.parallel,
        request.nodes,
        request.n_gpu_layers,
        request.kv_type,
        build=None if pin is None else int(pin),
    )
    return Offer(plan=plan, forecast=forecast_load(header, plan, head.name), head=head.name, memory_from=read)


async def _backends(inventory: Inventory) -> tuple[list[tuple[Node, int]], dict[str, str]]:
    """Memory of each backend: the inventory's ``router_backend_memory``, else read over SSH."""
    read: dict[str, str] = {}

    async def memory(node: Node) -> int:
        if memory := node.variables.get("router_backend_memory"):
            read[node.name] = "inventory"
            return parse_size(memory)
        read[node.name] = "node"
        return (await read_state(node)).facts.memory_available_bytes or 0

    sizes = await asyncio.gather(*(memory(node) for node in inventory.backends))
    return list(zip(inventory.backends, sizes, strict=True)), read
