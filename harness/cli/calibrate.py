"""``harness calibrate``: measure how fast each node is, so that plans follow speed as well as memory."""

import asyncio
from typing import Annotated

import typer

from harness.cli.options import InventoryOption
from harness.settings import DEFAULT_INVENTORY


def command(
    model: Annotated[
        str | None, typer.Option(help="Model of the head node that fits on each node alone.")
    ] = None,
    nodes: Annotated[str | None, typer.Option(help="Only these backends: node1,node3.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Show what is known; measure nothing.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Forget what is known: plans go by memory again.")
    ] = False,
    inventory: InventoryOption = DEFAULT_INVENTORY,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Load a small model on each backend alone, time its tokens, and let the router plan by it."""
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.table import Table

    from harness.cluster.inventory import load_inventory
    from harness.planner.calibration import Calibration
    from harness.router_client.client import RouterClient, router_address
    from harness.trials.kinds.calibrate import calibrate

    chosen = [name.strip() for name in nodes.split(",") if name.strip()] if nodes else None
    progress = Console(stderr=True)

    async def ask() -> Calibration:
        there = load_inventory(inventory)
        async with RouterClient(router_address(there)) as router:
            if forget:
                return await router.forget_calibration()
            if show:
                return await router.calibration()
            return await calibrate(there, router, model, chosen, progress.print)

    known = asyncio.run(ask())
    if as_json:
        print(known.model_dump_json(indent=1))
        return
    table = Table("node", "GB/s of weights", "tokens/s", "model", "build", "measured", "hardware")
    for one in known.nodes:
        when = datetime.fromtimestamp(one.measured_ns / 1e9, UTC)
        rates = ", ".join(f"{rate:.1f}" for rate in one.tokens_per_s)
        build = str(one.build or "unknown")
        figures = (f"{one.bytes_per_s / 1e9:.2f}", rates, one.model, build)
        table.add_row(one.node, *figures, f"{when:%Y-%m-%d %H:%M} UTC", one.hardware)
    Console(soft_wrap=True).print(table if known.nodes else "No node has been calibrated: harness calibrate")
