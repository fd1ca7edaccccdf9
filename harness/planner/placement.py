"""Placement: which layers go to which backend, as ``--tensor-split`` will put them."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from harness.common.text import MIB
from harness.contracts.plan import MAX_RPC_DEVICES, BackendShare, Plan
from harness.errors import HarnessError
from harness.llama.gguf import GgufModel
from harness.planner.device_capacity import DeviceCapacity, largest_usable
from harness.planner.fit_report import explain_no_fit
from harness.planner.memory import ComputeBuffers, Costs, model_costs, weights
from harness.planner.speed import faster_split, token_seconds

_ALL_LAYERS = 99
_NAMED = 8
_HEAD_WORK = 64 * MIB
"""The coordinator's own compute buffer and output, on the head node's CPU."""


def split_layers(splits: Sequence[float], layers: int, offloaded: int) -> list[int]:
    """Layers that llama.cpp gives each device for ``--tensor-split splits``.

    Follows llama_model::load_tensors (build 6751) in its own single precision: the splits are summed and
    normalised, and layer ``i`` of the offloaded ones goes to the first device whose sum is above ``i / n``.

    Args:
        splits: one number per device, not all zero.
        layers: repeating layers + 1.
        offloaded: ``-ngl``; the last layers are offloaded first.
    """
    count = min(offloaded, layers)
    sums = np.cumsum(np.array(splits, np.float32), dtype=np.float32)
    bounds = sums / sums[-1]
    positions = np.arange(count, dtype=np.float32) / np.float32(max(count, 1))
    devices = np.searchsorted(bounds, positions, side="right")
    return [int(n) for n in np.bincount(devices, minlength=len(bounds))]


def make_plan(
    model: GgufModel,
    backends: Sequence[DeviceCapacity],
    context: int = 2048,
    parallel: int = 1,
    nodes: Sequence[str] | None = None,
    n_gpu_layers: int | None = None,
    kv_type: str = "f16",
    learned: ComputeBuffers | None = None,
    build: int | None = None,
) -> Plan:
    """Place a model over backends, or say what is missing.

    Layers follow the memory that the devices have available, as llama.cpp itself would split; where that
    overfills a device, they are spread so that every one is filled to the same part of what it can give.
    Where the speed of every device is known and another split takes clearly less time per token, that one
    is used.

    Args:
        backends: their devices in ``--rpc`` order; bytes as read on the nodes. Of more than one coordinator
            can use, those with most memory are taken, and a note names the others.
        nodes: only these of the backends.
        n_gpu_layers: ``-ngl``; all layers by default. With 0 nothing is placed and nothing refused.
        learned: compute buffers printed by an earlier load of the same shape.
        build: of llama.cpp; without it an older one is taken.

    Raises:
        HarnessError: unknown node, no backends, an architecture that cannot be sized, or a model that does
            not fit.
    """
    selected = _choose(backends, nodes)
    chosen = largest_usable(selected)
    notes = _over_the_limit(selected, chosen)
    layers_total = model.block_count + 1
    offload = max(_ALL_LAYERS, layers_total) if n_gpu_layers is None else n_gpu_layers
    costs_of = partial(model_costs, model, offload=offload, parallel=parallel, build=build)
    costs = costs_of(context=context, kv_type=kv_type, learned=learned)
    counts = [0] * len(chosen)
    if costs.end > costs.start:
        by_memory = place_by_memory(chosen, costs)
        by_speed = faster_split(chosen, costs, by_memory, lambda some: place_by_memory(some, costs))
        if by_speed is not None:
            notes += _why_faster(chosen, costs, by_memory, by_speed)
        placed = by_speed or by_memory
        if placed is None:
            report = _no_fit(model, chosen, costs, costs_of, context, kv_type)
            raise HarnessError("; ".join([report, *notes]))
        counts = placed
    return Plan(
        model=model.path.stem,
        model_path=str(model.path),
        file_bytes=model.file_bytes,
        context=context,
        parallel=parallel,
        kv_type=kv_type,
        n_gpu_layers=offload,
        layers_total=layers_total,
        shares=_shares(chosen, costs, counts),
        notes=notes,
        token_s=token_seconds(chosen, costs, counts) if all(b.bytes_per_s for b in chosen) else None,
    )


def _shares(devices: Sequence[DeviceCapacity], costs: Costs, counts: Sequence[int]) -> list[BackendShare]:
    """A share for each device of every backend that holds layers; of all where none does."""
    used = {device.endpoint for device, count in zip(devices, counts, strict=True) if count}
    return [
        BackendShare(
            node=device.node,
            endpoint=device.endpoint,
            device=device.device,
            available_bytes=device.available_bytes,
            # Layer counts as the split: whole numbers that llama.cpp places exactly as counted.
            weight=float(last - first) if used else float(device.available_bytes // MIB),
            layers=last - first,
            model_bytes=costs.model(first, last),
            kv_bytes=costs.cache(first, last),
            compute_bytes=costs.buffers(first, last),
        )
        for device, (first, last) in zip(devices, costs.spans(counts), strict=True)
        if not used or device.endpoint in used
    ]


def _over_the_limit(selected: Sequence[DeviceCapacity], chosen: Sequence[DeviceCapacity]) -> list[str]:
    limit = f"one coordinator can use {MAX_RPC_DEVICES} RPC devices, and {len(selected)} are selected"
    return [f"{names} left out: {limit}"] if (names := _left_out(selected, chosen)) else []


def _left_out(devices: Sequence[DeviceCapacity], used: Sequence[DeviceCapacity]) -> str:
    """The nodes without a used device, the first eight by name; empty where there is none."""
    names = list(dict.fromkeys(d.node for d in devices if d.node not in {device.node for device in used}))
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if names[_NAMED:] else "")


def _choose(backends: Sequence[DeviceCapacity], nodes: Sequence[str] | None) -> list[DeviceCapacity]:
    available = list(dict.fromkeys(b.node for b in backends))
    unknown = [name for name in nodes or () if name not in available]
    if unknown:
        raise HarnessError(
            f"no backend on node '{unknown[0]}'; backends are on: {', '.join(available) or 'no node'}"
        )
    chosen = [b for b in backends if nodes is None or b.node in nodes]
    if not chosen:
        raise HarnessError("no backends to place a model on; give a node the group 'backends'")
    return chosen


def place_by_memory(devices: Sequence[DeviceCapacity], costs: Costs) -> list[int] | None:
    """Layers per device as llama.cpp splits by memory, or balanced where that overfills one; None: no way."""
    if any(device.available_bytes > 0 for device in devices):
        counts = split_layers(
            [device.available_bytes / MIB for device in devices], costs.end, costs.end - costs.start
        )
        spans = zip(devices, costs.spans(counts), strict=True)
        if all(costs.total(*span) <= device.usable_bytes for device, span in spans):
            return counts
    return _balance(devices, costs)


def _balance(devices: Sequence[DeviceCapacity], costs: Costs) -> list[int] | None:
    """Layers per device with the fullest one as empty as can be; None where nothing fits."""
    best = _fill(devices, costs, 1.0)
    low, high = 0.0, 1.0
    for _ in range(12 if best else 0):
        middle = (low + high) / 2
        counts = _fill(devices, costs, middle)
        if counts is None:
            low = middle
        else:
            best, high = counts, middle
    return best


def _fill(devices: Sequence[DeviceCapacity], costs: Costs, part: float) -> list[int] | None:
    """Fill the devices in order, each up to ``part`` of what it can give; None if layers are left over."""
    counts, first = [], costs.start
    for device in devices:
        last = first
        while last < costs.end and costs.total(first, last + 1) <= device.usable_bytes * part:
            last += 1
        counts.append(last - first)
        first = last
    return counts if first == costs.end else None


def _why_faster(
    devices: Sequence[DeviceCapacity], costs: Costs, by_memory: list[int] | None, by_speed: list[int]
) -> list[str]:
    with_s = token_seconds(devices, costs, by_speed)
    notes = []
    if by_memory is not None:
        without_s = token_seconds(devices, costs, by_memory)
        notes.append(f"split by measured speed: {with_s:.3f} s per token, {without_s:.3f} s split by memory")
    used = [device for device, count in zip(devices, by_speed, strict=True) if count]
    if dropped := _left_out(devices, used):
        notes.append(f"{dropped} left out: the model fits without, and is faster")
    return notes


def head_share(model: GgufModel) -> int:
    """Bytes that the coordinator itself needs on the head node: the token embedding and its own buffers."""
    return weights(model).input + _HEAD_WORK


def _no_fit(
    model: GgufModel,
    devices: Sequence[DeviceCapacity],
    costs: Costs,
    costs_of: Callable[..., Costs],
    context: int,
    kv_type: str,
) -> str:
    def fits(some: Sequence[DeviceCapacity], tokens: int, kind: str) -> bool:
        return _fill(largest_usable(some), costs_of(context=tokens, kv_type=kind), 1.0) is not None

    return explain_no_fit(model, devices, costs, context=context, kv_type=kv_type, fits=fits)
