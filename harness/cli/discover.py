"""``harness discover``: which backends there are, as the head node sees them."""

import json
from typing import Annotated, Any

import typer

from harness.cli.options import InventoryOption
from harness.settings import DEFAULT_INVENTORY, RPC_PORT


def command(
    cidr: Annotated[
        list[str] | None,
        typer.Argument(help="Private networks to look through beside the inventory, such as 10.0.0.0/24."),
    ] = None,
    inventory: InventoryOption = DEFAULT_INVENTORY,
    port: Annotated[int, typer.Option(help="RPC port in those networks.", min=1, max=65535)] = RPC_PORT,
    limit: Annotated[int, typer.Option(help="The most addresses to ask.", min=1, max=65536)] = 1024,
    force: Annotated[bool, typer.Option(help="Admit networks that are not private.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List backends: idle, busy, of another protocol version, silent or closed.

    Asked from the head node, the only one that the backends admit. Backends in use are never connected to.
    """
    import asyncio

    from harness.cluster.inventory import load_inventory
    from harness.router_client.client import RouterClient, router_address

    address = router_address(load_inventory(inventory))

    async def ask() -> list[dict[str, Any]]:
        async with RouterClient(address) as router:
            return await router.discover(cidr or [], port=port, limit=limit, force=force)

    found = asyncio.run(ask())
    if as_json:
        print(json.dumps(found, indent=2))
        return
    _show(found)


def _show(found: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("node", "endpoint", "status", "protocol", "devices", "free", "total", "why")
    for one in found:
        table.add_row(
            one["node"] or "-",
            f"{one['host']}:{one['port']}",
            one["status"],
            one["version"] or "-",
            str(len(one["devices"])) if one["version"] else "-",
            _gib(one["free_bytes"]),
            _gib(one["total_bytes"]),
            one["reason"],
        )
    Console().print(table)


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / (1 << 30):.1f} GiB"
