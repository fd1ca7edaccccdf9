"""Forecast of a load: the floors that the wire, the hashing and the disk set, and swap."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.contracts.plan import Plan
from harness.contracts.plan_offer import LoadForecast
from harness.llama.gguf import GgufModel
from harness.tensor_cache.placement import cached_tensors

_HASH_BYTES_PER_S = 0.75e9
_LINK_BYTES_PER_S = 125e6
_DISK_BYTES_PER_S = 500e6


@dataclass(frozen=True)
class Rates:
    """What is assumed of the machines, or was measured on them."""

    link_bytes_per_s: Mapping[str, float] = field(default_factory=dict)
    """By node, from the head node; 1 Gbit/s where it is not known."""
    disk_bytes_per_s: float = _DISK_BYTES_PER_S
    """Of the head node, reading the model with a cold page cache."""
    hash_bytes_per_s: float = _HASH_BYTES_PER_S
    """Of llama.cpp's hash of a tensor, on the head node."""


def forecast_load(
    model: GgufModel, plan: Plan, head: str, rates: Rates, cached: Mapping[str, int] | None = None
) -> LoadForecast:
    """What a load of ``plan`` takes at least.

    Args:
        model: the file's facts.
        plan: where its layers go.
        head: the head node; what goes to its own backend crosses no link.
        rates: of links, disk and hashing.
        cached: by node the bytes of this plan that its tensor cache holds already.
    """
    cached = cached or {}
    wire: dict[str, int] = {}
    swap: dict[str, int] = {}
    for share in plan.shares:
        if share.left_bytes < 0:
            swap[share.node] = swap.get(share.node, 0) - share.left_bytes
        if share.node != head and share.model_bytes:
            wire[share.node] = wire.get(share.node, 0) + share.model_bytes
    wire = {node: max(0, size - cached.get(node, 0)) for node, size in wire.items()}
    hashed = sum(tensor.bytes for tensors in cached_tensors(model, plan).values() for tensor in tensors)
    wire_s = sum(size / rates.link_bytes_per_s.get(node, _LINK_BYTES_PER_S) for node, size in wire.items())
    hash_s, disk_s = hashed / rates.hash_bytes_per_s, model.file_bytes / rates.disk_bytes_per_s
    return LoadForecast(
        wire_bytes=wire,
        wire_s=wire_s,
        hash_bytes=hashed,
        hash_s=hash_s,
        disk_bytes=model.file_bytes,
        disk_s=disk_s,
        load_s=max(disk_s, hash_s + wire_s),
        swap_bytes=swap,
    )
