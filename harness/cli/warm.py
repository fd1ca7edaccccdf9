"""``harness warm``: fill the tensor caches with what a load will need, before the first load."""

import asyncio
import json
from dataclasses import asdict
from typing import Annotated

import typer

from harness.cli.options import InventoryOption
from harness.settings import DEFAULT_INVENTORY


def command(
    model: Annotated[str, typer.Argument(help="A model of the head node by name.")],
    nodes: Annotated[str | None, typer.Option(help="Only these backends: node1,node3.")] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens of context of the load to come.")] = 2048,
    push: Annotated[
        bool, typer.Option("--push", help="Send tensors even to nodes that have the file.")
    ] = False,
    inventory: InventoryOption = DEFAULT_INVENTORY,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fill each backend's tensor cache with the tensors that the plan puts there, on all nodes at once."""
    from rich.console import Console

    from harness.cluster.inventory import load_inventory
    from harness.router_client.client import LoadRequest, RouterClient, router_address
    from harness.tensor_cache.warm import Warmed, warm

    chosen = [name.strip() for name in nodes.split(",") if name.strip()] if nodes else None
    progress = Console(stderr=True, soft_wrap=True)

    async def fill() -> list[Warmed]:
        there = load_inventory(inventory)
        async with RouterClient(router_address(there)) as router:
            asked = LoadRequest(model, nodes=chosen, context=context)
            return (await warm(there, router, asked, progress.print, push=push))[1]

    done = asyncio.run(fill())
    if as_json:
        print(json.dumps([asdict(one) for one in done], indent=1))
        return
    written, total = sum(one.written for one in done), sum(one.size for one in done)
    slowest = max(one.seconds for one in done)
    held = f"{model}: {total / 1e9:.2f} GB in the caches of {len(done)} nodes"
    print(f"{held}, {written / 1e9:.2f} GB of it new, {slowest:.1f} s")
