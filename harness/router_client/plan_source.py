"""Asking for a plan: the router first, else from a model file here and what the nodes say over SSH."""

import asyncio
from pathlib import Path

from harness.cluster.inventory import Inventory, Node, load_inventory
from harness.cluster.ssh import read_state
from harness.contracts.plan_offer import Offer
from harness.errors import HarnessError
from harness.router_client.client import LoadRequest, RouterClient, RouterRefusedError, router_address


async def ask_for_plan(path: Path, asked: LoadRequest) -> Offer:
    """The plan of a load on an inventory.

    The router knows the monitors' figures, the nodes' speeds and what earlier loads taught. Where it does not
    answer, or the model is a file here that it does not have, the plan is made here from what the nodes say.

    Raises:
        HarnessError: the model is neither there nor here, does not fit, or no node can be asked.
    """
    inventory = load_inventory(path)
    try:
        async with RouterClient(router_address(inventory)) as router:
            return await router.plan(asked)
    except RouterRefusedError as refused:
        if refused.failure_class != "unknown_model":
            raise
        reason: HarnessError = refused
    except HarnessError as error:
        reason = error
    return await _plan_here(inventory, asked, reason)


async def _plan_here(inventory: Inventory, asked: LoadRequest, reason: HarnessError) -> Offer:
    # Not paid for where the router answers.
    from harness.models.resolve import resolve_model
    from harness.planner.device_capacity import BackendMemory
    from harness.planner.forecast import Rates, forecast_load
    from harness.planner.placement import head_share, make_plan

    try:
        header = resolve_model(asked.model).gguf
    except HarnessError as error:
        raise HarnessError(f"{reason}; and here: {error}") from None
    backends, read = await _backends(inventory)
    head = inventory.head
    devices = [
        BackendMemory(node.name, node.rpc_endpoint, size, head_share(header) if node == head else None)
        for node, size in backends
    ]
    pin = head.variables.get("llama_cpp_build")
    plan = make_plan(
        header,
        devices,
        asked.context,
        asked.parallel,
        asked.nodes,
        asked.n_gpu_layers,
        asked.kv_type,
        build=None if pin is None else int(pin),
    )
    return Offer(
        plan=plan, forecast=forecast_load(header, plan, head.name, Rates()), head=head.name, memory_from=read
    )


async def _backends(inventory: Inventory) -> tuple[list[tuple[Node, int]], dict[str, str]]:
    """Memory of each backend: the inventory's ``router_backend_memory``, else asked over SSH."""
    from harness.lab.spec import parse_size

    read: dict[str, str] = {}

    async def memory(node: Node) -> int:
        if given := node.variables.get("router_backend_memory"):
            read[node.name] = "inventory"
            return parse_size(given)
        read[node.name] = "node"
        return (await read_state(node)).facts.memory_available_bytes or 0

    sizes = await asyncio.gather(*(memory(node) for node in inventory.backends))
    return list(zip(inventory.backends, sizes, strict=True)), read
