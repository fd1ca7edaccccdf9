"""``harness plan``: which layers would go where, what that leaves, and how long the load takes at least."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import InventoryOption
from harness.settings import DEFAULT_INVENTORY


def command(
    model: Annotated[str, typer.Argument(help="A model of the head node by name, or a GGUF file here.")],
    nodes: Annotated[str | None, typer.Option(help="Only these backends: node1,node3.")] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens of context (--ctx-size).")] = 2048,
    parallel: Annotated[int, typer.Option(min=1, help="Sequences at once (--parallel).")] = 1,
    kv_type: Annotated[str, typer.Option(help="Type of the KV cache: f16, q8_0, q4_0, ...")] = "f16",
    inventory: InventoryOption = DEFAULT_INVENTORY,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan a load without loading anything; exit status 1 and what is missing where it does not fit."""
    from harness.router_client.client import LoadRequest
    from harness.router_client.plan_source import ask_for_plan

    chosen = [name.strip() for name in nodes.split(",") if name.strip()] if nodes else None
    asked = LoadRequest(model, nodes=chosen, context=context, parallel=parallel, kv_type=kv_type)
    offer = asyncio.run(ask_for_plan(Path(inventory), asked))
    if as_json:
        print(offer.model_dump_json(indent=1))
        return
    from harness.cli.plan_table import show_offer

    show_offer(offer)
