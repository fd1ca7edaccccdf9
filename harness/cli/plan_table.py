"""A plan as a table for people."""

from rich.console import Console
from rich.table import Table

from harness.contracts.plan import BackendShare
from harness.contracts.plan_offer import Offer

_MIB = 1 << 20
_GIB = 1 << 30


def show_offer(offer: Offer, console: Console | None = None) -> None:
    """Print the plan, what it leaves on each node, the command's split, and the forecast."""
    console = console or Console(soft_wrap=True)
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
        f"first load: at least {cast.load_s:.0f} s (wire {cast.wire_s:.0f} s for {wire / _GIB:.1f} GiB, "
        f"hashing {cast.hash_s:.0f} s, disk {cast.disk_s:.0f} s)"
    )
    swap = [f"{node} {size / _MIB:,.0f} MiB" for node, size in cast.swap_bytes.items()]
    console.print(f"swap: {', '.join(swap) if swap else 'none'}")


def _row(share: BackendShare, first: int) -> tuple[str, ...]:
    name = f"{share.node}:{share.device}" if share.device else share.node
    layers = f"{first}-{first + share.layers - 1} ({share.layers})" if share.layers else "0"
    sizes = (share.model_bytes, share.kv_bytes, share.compute_bytes, share.available_bytes, share.left_bytes)
    return (name, layers, *(f"{size / _MIB:,.0f} MiB" for size in sizes))
