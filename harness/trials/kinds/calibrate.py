"""``harness calibrate``: how fast each backend's node decodes, measured with one small model on it alone."""

import time
from collections.abc import Callable

from harness.cluster.inventory import Inventory, Node
from harness.cluster.node_inspection import read_state
from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.plan import LoadRequest
from harness.errors import HarnessError
from harness.planner.device_capacity import Calibration, NodeSpeed
from harness.router_client.chat_stream import ChatRequest
from harness.router_client.client import RouterClient
from harness.runs.metrics import server_decode_rate

TOKENS = 16
REPEATS = 3
_CONTEXT = 512
_DEADLINE_S = 300.0
_PROMPT = "Count slowly from one to a hundred."


async def calibrate(
    inventory: Inventory,
    router: RouterClient,
    model: str | None,
    nodes: list[str] | None,
    say: Callable[[str], None],
) -> Calibration:
    """Measure backends one after the other and tell the router, which plans by it from then on.

    A token reads every weight once, so that a node's speed is the model's bytes on it over its time per token
    (llama.cpp's own clock, the fastest of three requests after a warm-up: other work of a node
    can only slow it). It holds for the measured build.

    Args:
        model: of the router's; by default the smallest that goes to the coordinator.
        nodes: by default every backend.

    Raises:
        HarnessError: no such model or node, it does not fit on one of the nodes, or a request failed.
    """
    chosen = [inventory.node(name) for name in nodes] if nodes else inventory.backends
    name = model or await _smallest(router)
    measured = []
    try:
        for node in chosen:
            say(f"{node.name}: {name} alone on it")
            measured.append(await _measure(router, node, name))
            say(f"{node.name}: {measured[-1].bytes_per_s / 1e9:.2f} GB/s")
    finally:
        await router.unload()
    return await router.calibration(Calibration(nodes=measured))


async def _smallest(router: RouterClient) -> str:
    models = await router.models()
    sizes = {
        name: int(entry["file_bytes"])
        for name, entry in models.items()
        if entry.get("route") == "coordinator" and entry.get("file_bytes")
    }
    if not sizes:
        raise HarnessError(
            f"no model of the router at {router.address.url} goes over the backends; bring one there "
            "with playbooks/models.yml"
        )
    return min(sizes, key=lambda name: sizes[name])


async def _measure(router: RouterClient, node: Node, model: str) -> NodeSpeed:
    # A plan for one node: earlier calibration does not change it.
    state = await router.load(
        LoadRequest(model=model, nodes=[node.name], context=_CONTEXT, deadline_s=_DEADLINE_S)
    )
    facts = (await read_state(node)).facts
    rates = [rate for index in range(REPEATS + 1) if (rate := await _rate(router, node, model, index))]
    return NodeSpeed(
        node=node.name,
        bytes_per_s=_backend_bytes(state) * max(rates[1:]),
        build=facts.build,
        sha256=facts.binaries.get("rpc-server"),
        hardware=f"{facts.cpu or 'unknown processor'}, {facts.cpus or '?'} cores, {facts.accelerator}",
        model=model,
        measured_ns=time.time_ns(),
        tokens_per_s=rates[1:],
    )


async def _rate(router: RouterClient, node: Node, model: str, index: int) -> float:
    sent = await router.chat(ChatRequest(model, _PROMPT, TOKENS, _DEADLINE_S, index=index, warmup=index == 0))
    rate = server_decode_rate(sent)
    if sent.error or rate is None:
        raise HarnessError(f"{node.name}: {model} did not answer while it was calibrated: {sent.error}")
    return rate


def _backend_bytes(state: CoordinatorState) -> int:
    size = sum(buffer.model_bytes for buffer in state.report.rpc_buffers) if state.report else 0
    if not size:
        raise HarnessError("the router's load report names no bytes on the backend; deploy the router again")
    return size
