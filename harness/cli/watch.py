"""``harness watch``: all nodes and backends, live, without ever connecting to a backend."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import InventoryOption
from harness.settings import DEFAULT_INVENTORY

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.cluster.inventory import Inventory
    from harness.contracts.coordinator_state import CoordinatorState
    from harness.watch.view import ClusterView


def command(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    once: Annotated[bool, typer.Option("--once", help="Show it once, not live.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document; with --follow, one a line.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="With --json: go on until stopped.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.2)] = 1.0,
) -> None:
    """Show every node and backend: state, model share, memory, swap, GPU, restarts, age of the data.

    States are what the nodes themselves say, from Redis on the head node or else from each node's ring over
    SSH. A busy backend is shown as busy, a node that says nothing as silent; nothing connects to a backend.
    """
    from harness.cluster.inventory import load_inventory

    found = load_inventory(inventory)
    show = _print_json if as_json else None
    goes_on = follow if as_json else not once
    try:
        asyncio.run(_watch(found, interval, goes_on, show))
    except (KeyboardInterrupt, BrokenPipeError):
        raise typer.Exit from None


async def _watch(
    inventory: "Inventory", interval_s: float, goes_on: bool, show: "Callable[[ClusterView], None] | None"
) -> None:
    from rich.console import Console
    from rich.live import Live

    from harness.watch.sources import Sources
    from harness.watch.table import table

    console = Console()
    async with Sources(inventory, lambda: _coordinator(inventory), interval_s) as sources:
        await sources.first_look()
        if show is None and not (goes_on and console.is_terminal):
            console.print(table(sources.view()))
            return
        if show is None:
            with Live(table(sources.view()), console=console, auto_refresh=False, screen=True) as live:
                while True:
                    await asyncio.sleep(interval_s)
                    live.update(table(sources.view()), refresh=True)
        show(sources.view())
        while goes_on:
            await asyncio.sleep(interval_s)
            show(sources.view())


async def _coordinator(inventory: "Inventory") -> "CoordinatorState":
    from harness.router_client.client import RouterClient, router_address

    async with RouterClient(router_address(inventory)) as router:
        return await router.coordinator()


def _print_json(view: "ClusterView") -> None:
    print(view.model_dump_json(), flush=True)
