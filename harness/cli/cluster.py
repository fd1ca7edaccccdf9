"""``harness deploy``, ``discover`` and ``watch``: deploy the nodes, and show them and their backends."""

import asyncio
import getpass
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.options import InventoryOption, JsonOption
from harness.common.text import gib
from harness.errors import HarnessError
from harness.settings import DEFAULT_INVENTORY, REPOSITORY, RPC_PORT, state_dir

if TYPE_CHECKING:
    from harness.cluster.inventory import Inventory
    from harness.contracts.coordinator_state import CoordinatorState


def deploy(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    limit: Annotated[str | None, typer.Option(help="Only these hosts or groups.")] = None,
    build_only: Annotated[
        bool, typer.Option("--build-only", help="Only build llama.cpp and install it; start no service.")
    ] = False,
    extra: Annotated[list[str] | None, typer.Option("--extra", "-e", help="key=value for Ansible.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; say what would change.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show what changes in files.")] = False,
    tags: Annotated[str | None, typer.Option(help="Only the parts with these tags.")] = None,
    ask_become_pass: Annotated[
        bool, typer.Option("--ask-become-pass", "-K", help="Ask for the password of sudo on the nodes.")
    ] = False,
) -> None:
    """Deploy everything: the same as ``ansible-playbook site.yml``. Ansible's output is kept in a log."""
    from harness.cluster.ansible import deployed_parts, run_playbook

    for pair in extra or []:
        if "=" not in pair:
            raise HarnessError(f"--extra {pair} is not key=value, such as llama_cpp_build=11549")
    if unknown := set(tags.split(",") if tags else []) - set(parts := deployed_parts()):
        raise HarnessError(f"no part has the tag {', '.join(sorted(unknown))}; there are: {', '.join(parts)}")
    pairs = dict(pair.split("=", 1) for pair in extra or [])
    if build_only:  # beside the build that runs, which stays current
        pairs["llama_cpp_activate"] = "false"
    log_file = state_dir(inventory) / "logs" / f"deploy-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.log"
    run_playbook(
        REPOSITORY / "site.yml",
        inventory,
        extra_vars=pairs,
        limit=limit,
        tags="llama_cpp" if build_only else tags,
        title="Deploying",
        check=check,
        diff=diff,
        become_password=getpass.getpass("BECOME password: ") if ask_become_pass else None,
        log_file=log_file,
    )
    print(f"harness: the whole log is {log_file}", file=sys.stderr)


def discover(
    cidr: Annotated[
        list[str] | None,
        typer.Argument(help="Private networks to search besides the inventory, such as 10.0.0.0/24."),
    ] = None,
    inventory: InventoryOption = DEFAULT_INVENTORY,
    port: Annotated[int, typer.Option(help="RPC port in those networks.", min=1, max=65535)] = RPC_PORT,
    limit: Annotated[int, typer.Option(help="The most addresses to probe.", min=1, max=65536)] = 1024,
    force: Annotated[bool, typer.Option(help="Allow networks that are not private.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List backends: idle, busy, of another protocol version, silent or closed.

    The head node probes them, the only one that the backends admit. Backends in use are never connected to.
    """
    from rich.console import Console
    from rich.table import Table

    from harness.cluster.inventory import load_inventory
    from harness.router_client.client import RouterClient, router_address

    address = router_address(load_inventory(inventory))

    async def probe() -> list[dict[str, Any]]:
        async with RouterClient(address) as router:
            return await router.discover(cidr or [], port=port, limit=limit, force=force)

    backends = asyncio.run(probe())
    if as_json:
        print(json.dumps(backends, indent=2))
        return
    table = Table("node", "endpoint", "status", "protocol", "devices", "free", "total", "why")
    for backend in backends:
        table.add_row(
            backend["node"] or "-",
            f"{backend['host']}:{backend['port']}",
            backend["status"],
            backend["version"] or "-",
            str(len(backend["devices"])) if backend["version"] else "-",
            _gib(backend["free_bytes"]),
            _gib(backend["total_bytes"]),
            backend["reason"],
        )
    Console().print(table)


def _gib(size: int | None) -> str:
    return "-" if size is None else gib(size)


def watch(
    inventory: InventoryOption = DEFAULT_INVENTORY,
    once: Annotated[bool, typer.Option("--once", help="Show it once, not live.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document; with --follow, one a line.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="With --json: repeat until stopped.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two views.", min=0.2)] = 1.0,
) -> None:
    """Show every node and backend: state, model share, memory, swap, GPU, restarts, age of the data.

    States come from the nodes' own samples, by Redis on the head node or else by each node's ring over SSH.
    A busy backend is shown as busy, a node without recent samples as silent; nothing connects to a backend.
    """
    from harness.cluster.inventory import load_inventory

    repeat = follow if as_json else not once
    try:
        asyncio.run(_watch(load_inventory(inventory), interval, repeat, as_json=as_json))
    except (KeyboardInterrupt, BrokenPipeError):
        raise typer.Exit from None


async def _watch(inventory: "Inventory", interval_s: float, repeat: bool, *, as_json: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from harness.watch.sources import Sources
    from harness.watch.table import table

    console = Console()
    async with Sources(inventory, lambda: _coordinator(inventory), interval_s) as sources:
        await sources.first_snapshot()
        if as_json:
            print(sources.view().model_dump_json(), flush=True)
            while repeat:
                await asyncio.sleep(interval_s)
                print(sources.view().model_dump_json(), flush=True)
        elif repeat and console.is_terminal:
            with Live(table(sources.view()), console=console, auto_refresh=False, screen=True) as live:
                while True:
                    await asyncio.sleep(interval_s)
                    live.update(table(sources.view()), refresh=True)
        else:
            console.print(table(sources.view()))


async def _coordinator(inventory: "Inventory") -> "CoordinatorState":
    from harness.router_client.client import RouterClient, router_address

    async with RouterClient(router_address(inventory)) as router:
        return await router.coordinator()
