"""``harness plan`` and ``calibrate``: which layers would go where, and how fast each node is."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import InventoryOption, JsonOption, NodesOption, node_names
from harness.common.text import MIB, first_error, gib
from harness.errors import HarnessError
from harness.settings import DEFAULT_INVENTORY

if TYPE_CHECKING:
    from harness.contracts.plan import BackendShare, Offer


def plan(
    model: Annotated[str, typer.Argument(help="A model of the head node by name, or a GGUF file here.")],
    nodes: NodesOption = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens of context (--ctx-size).")] = 2048,
    parallel: Annotated[int, typer.Option(min=1, help="Sequences at once (--parallel).")] = 1,
    kv_type: Annotated[str, typer.Option(help="Type of the KV cache: f16, q8_0, q4_0, ...")] = "f16",
    inventory: InventoryOption = DEFAULT_INVENTORY,
    as_json: JsonOption = False,
) -> None:
    """Plan a load without loading anything; exit status 1 and what is missing where it does not fit."""
    from pydantic import ValidationError

    from harness.contracts.plan import LoadRequest
    from harness.router_client.plan_source import request_plan

    chosen = node_names(nodes)
    settings = {"context": context, "parallel": parallel, "kv_type": kv_type}
    try:
        request = LoadRequest.model_validate({"model": model, "nodes": chosen, **settings})
    except ValidationError as error:
        raise HarnessError(f"the load cannot be planned: {first_error(error)}") from None
    offer = asyncio.run(request_plan(inventory, request))
    if as_json:
        print(offer.model_dump_json(indent=1))
        return
    _show(offer)


def _show(offer: "Offer") -> None:
    """Print the plan, what it leaves on each node, the command's split, and the forecast."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    plan = offer.plan
    title = f"{plan.model}: {plan.layers_total} layers, context {plan.context}, KV cache {plan.kv_type}"
    table = Table("backend", "layers", "model", "KV", "compute", "available", "left", "read by", title=title)
    for column in table.columns[1:7]:
        column.justify = "right"
    first = 0
    for share in plan.shares:
        table.add_row(*_row(share, first), offer.memory_from.get(share.node, ""))
        first += share.layers
    console.print(table)
    split = ",".join(f"{share.weight:g}" for share in plan.shares)
    console.print(f"-ngl {plan.n_gpu_layers} --rpc {','.join(plan.endpoints)} --tensor-split {split}")
    for note in plan.notes:
        console.print(note)
    if plan.token_s:
        console.print(f"about {plan.token_s:.2f} s per token, by the nodes' measured speeds")
    cast, wire = offer.forecast, sum(offer.forecast.wire_bytes.values())
    console.print(
        f"first load: at least {cast.load_s:.0f} s (wire {cast.wire_s:.0f} s for {gib(wire)}, "
        f"hashing {cast.hash_s:.0f} s, disk {cast.disk_s:.0f} s)"
    )
    swap = [f"{node} {size / MIB:,.0f} MiB" for node, size in cast.swap_bytes.items()]
    console.print(f"swap: {', '.join(swap) if swap else 'none'}")


def _row(share: "BackendShare", first: int) -> tuple[str, ...]:
    name = f"{share.node}:{share.device}" if share.device else share.node
    layers = f"{first}-{first + share.layers - 1} ({share.layers})" if share.layers else "0"
    sizes = (share.model_bytes, share.kv_bytes, share.compute_bytes, share.available_bytes, share.left_bytes)
    return (name, layers, *(f"{size / MIB:,.0f} MiB" for size in sizes))


def calibrate(
    model: Annotated[
        str | None, typer.Option(help="Model of the head node that fits on each node alone.")
    ] = None,
    nodes: NodesOption = None,
    show: Annotated[bool, typer.Option("--show", help="Show the measured speeds; measure nothing.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget the measured speeds: plans go by memory again.")
    ] = False,
    inventory: InventoryOption = DEFAULT_INVENTORY,
    as_json: JsonOption = False,
) -> None:
    """Load a small model on each backend alone, time its tokens, and let the router plan by it."""
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.table import Table

    from harness.cluster.inventory import load_inventory
    from harness.planner.device_capacity import Calibration
    from harness.router_client.client import RouterClient, router_address
    from harness.trials.kinds.calibrate import calibrate as measure

    progress = Console(stderr=True)

    async def read_or_measure() -> Calibration:
        cluster = load_inventory(inventory)
        async with RouterClient(router_address(cluster)) as router:
            if forget:
                return await router.forget_calibration()
            if show:
                return await router.calibration()
            return await measure(cluster, router, model, node_names(nodes), progress.print)

    calibration = asyncio.run(read_or_measure())
    if as_json:
        print(calibration.model_dump_json(indent=1))
        return
    table = Table("node", "GB/s of weights", "tokens/s", "model", "build", "measured", "hardware")
    for speed in calibration.nodes:
        when = datetime.fromtimestamp(speed.measured_ns / 1e9, UTC)
        rates = ", ".join(f"{rate:.1f}" for rate in speed.tokens_per_s)
        build = str(speed.build or "unknown")
        figures = (f"{speed.bytes_per_s / 1e9:.2f}", rates, speed.model, build)
        table.add_row(speed.node, *figures, f"{when:%Y-%m-%d %H:%M} UTC", speed.hardware)
    Console(soft_wrap=True).print(
        table if calibration.nodes else "No node has been calibrated: harness calibrate"
    )
