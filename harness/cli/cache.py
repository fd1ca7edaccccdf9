"""``harness cache`` and ``warm``: the tensor caches of the backends, and what fills them before a load."""

import asyncio
import json
from dataclasses import asdict
from typing import Annotated

import typer

from harness.cli.options import InventoryOption, JsonOption, NodesOption, node_names
from harness.settings import DEFAULT_INVENTORY

app = typer.Typer(help="Tensor caches of the backends.", no_args_is_help=True)


@app.command()
def status(inventory: InventoryOption = DEFAULT_INVENTORY, as_json: JsonOption = False) -> None:
    """Show how many tensors each backend's cache holds, and how many the last `harness warm` needs."""
    from rich.console import Console
    from rich.table import Table

    from harness.cluster.inventory import load_inventory
    from harness.tensor_cache.client import CacheStatus, cache_status

    async def read() -> list[CacheStatus]:
        return list(await asyncio.gather(*map(cache_status, load_inventory(inventory).some_backends())))

    caches = asyncio.run(read())
    if as_json:
        print(json.dumps([asdict(cache) for cache in caches], indent=1))
        return
    table = Table("node", "tensors", "size", "needed by last warm", "of them there", "folder")
    for cache in caches:
        counts = (str(cache.needed), str(cache.needed_there))
        table.add_row(cache.node, str(cache.tensors), f"{cache.size / 1e9:.2f} GB", *counts, cache.folder)
    Console(soft_wrap=True).print(table)


@app.command()
def verify(inventory: InventoryOption = DEFAULT_INVENTORY) -> None:
    """Hash every cached tensor on every backend and drop those that are incomplete or altered."""
    from harness.cluster.inventory import load_inventory
    from harness.tensor_cache.client import verify_caches

    _print(asyncio.run(verify_caches(load_inventory(inventory).some_backends())))


@app.command()
def prune(
    cap: Annotated[str, typer.Option("--max", help="Bytes that each cache may keep, such as 20G.")],
    inventory: InventoryOption = DEFAULT_INVENTORY,
) -> None:
    """Drop the least recently used tensors, but none that the plan of the last `harness warm` needs."""
    from harness.cluster.inventory import load_inventory
    from harness.common.text import parse_size
    from harness.errors import HarnessError
    from harness.tensor_cache.client import prune_caches

    try:
        size = parse_size(cap)
    except ValueError as error:
        raise HarnessError(f"--max: {error}") from None
    _print(asyncio.run(prune_caches(load_inventory(inventory).some_backends(), size)))


def _print(texts: dict[str, str]) -> None:
    for node, text in texts.items():
        for line in text.splitlines() or ["nothing to do"]:
            print(f"{node}: {line}")


def warm(
    model: Annotated[str, typer.Argument(help="Name of a model on the head node.")],
    nodes: NodesOption = None,
    context: Annotated[int, typer.Option(min=1, help="Context of the load, in tokens.")] = 2048,
    push: Annotated[
        bool, typer.Option("--push", help="Send tensors even to nodes that have the file.")
    ] = False,
    inventory: InventoryOption = DEFAULT_INVENTORY,
    as_json: JsonOption = False,
) -> None:
    """Fill each backend's tensor cache with the tensors that the plan puts there, on all nodes at once."""
    from rich.console import Console

    from harness.cluster.inventory import load_inventory
    from harness.contracts.plan import LoadRequest
    from harness.router_client.client import RouterClient, router_address
    from harness.tensor_cache.warm import Warmed
    from harness.tensor_cache.warm import warm as fill_caches

    progress = Console(stderr=True, soft_wrap=True)

    async def fill() -> list[Warmed]:
        cluster = load_inventory(inventory)
        async with RouterClient(router_address(cluster)) as router:
            load = LoadRequest(model=model, nodes=node_names(nodes), context=context)
            return (await fill_caches(cluster, router, load, progress.print, push=push))[1]

    nodes_done = asyncio.run(fill())
    if as_json:
        print(json.dumps([asdict(node) for node in nodes_done], indent=1))
        return
    written, total = sum(node.written for node in nodes_done), sum(node.size for node in nodes_done)
    print(
        f"{model}: {total / 1e9:.2f} GB in the caches of {len(nodes_done)} nodes, "
        f"{written / 1e9:.2f} GB of it new, {max(node.seconds for node in nodes_done):.1f} s"
    )
