"""``harness cache``: what the backends' tensor caches hold, whether it is whole, and pruning them."""

import asyncio
import json
from typing import Annotated

import typer

from harness.cli.options import InventoryOption
from harness.settings import DEFAULT_INVENTORY

app = typer.Typer(help="Tensor caches of the backends.", no_args_is_help=True)


@app.command()
def status(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how many tensors each backend's cache holds, and how many of them the current plan needs."""
    from rich.console import Console
    from rich.table import Table

    from harness.cluster.inventory import load_inventory
    from harness.tensor_cache.client import CacheStatus, cache_status

    async def look() -> list[CacheStatus]:
        return list(await asyncio.gather(*map(cache_status, load_inventory(inventory).some_backends())))

    found = asyncio.run(look())
    if as_json:
        print(json.dumps([one.as_dict() for one in found], indent=1))
        return
    table = Table("node", "tensors", "size", "needed by the plan", "of them there", "folder")
    for one in found:
        size = f"{one.size / 1e9:.2f} GB"
        table.add_row(one.node, str(one.tensors), size, str(one.needed), str(one.needed_there), one.folder)
    Console(soft_wrap=True).print(table)


@app.command()
def verify(inventory: InventoryOption = DEFAULT_INVENTORY) -> None:
    """Hash every cached tensor on every backend and drop those that were cut or altered."""
    from harness.cluster.inventory import load_inventory
    from harness.tensor_cache.client import verify_caches

    _say(asyncio.run(verify_caches(load_inventory(inventory).some_backends())))


@app.command()
def prune(
    cap: Annotated[str, typer.Option("--max", help="Bytes that each cache may keep, such as 20G.")],
    inventory: InventoryOption = DEFAULT_INVENTORY,
) -> None:
    """Drop what was not used for longest, but nothing that the current plan needs."""
    from harness.cluster.inventory import load_inventory
    from harness.errors import HarnessError
    from harness.lab.spec import parse_size
    from harness.tensor_cache.client import prune_caches

    try:
        size = parse_size(cap)
    except ValueError as error:
        raise HarnessError(f"--max: {error}") from None
    _say(asyncio.run(prune_caches(load_inventory(inventory).some_backends(), size)))


def _say(said: dict[str, str]) -> None:
    for node, text in said.items():
        for line in text.splitlines() or ["nothing to do"]:
            print(f"{node}: {line}")
