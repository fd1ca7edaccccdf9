"""Placement: which layers go to which backend, as ``--tensor-split`` will put them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from harness.errors import HarnessError
from harness.models.gguf import GgufModel
from harness.planner.memory import Weights, compute_bytes, kv_bytes, weights
from harness.planner.plan import BackendShare, Plan

_MIB = 1 << 20
_RESERVE = 256 * _MIB
_MARGIN = 0.02
_ALL_LAYERS = 99
_NAMED = 8


@dataclass(frozen=True)
class BackendMemory:
    """A backend and the memory its node can give."""

    node: str
    endpoint: str
    """``address:port``."""
    available_bytes: int
    reserve_bytes: int | None = None
    """Left to the node; by default 256 MiB and 2% of what is available."""

    @property
    def usable_bytes(self) -> int:
        """What a plan may fill."""
        reserve = self.reserve_bytes
        if reserve is None:
            reserve = _RESERVE + int(self.available_bytes * _MARGIN)
        return max(0, self.available_bytes - reserve)


@dataclass(frozen=True)
class _Costs:
    """Bytes of any run of the layers that are to be placed."""

    weights: Weights
    kv: tuple[int, ...]
    compute: dict[tuple[bool, bool], int]
    """By whether the device has the first layer, and the output."""
    start: int
    end: int

    def model(self, first: int, last: int) -> int:
        return self.weights.of(first, last)

    def cache(self, first: int, last: int) -> int:
        return sum(self.kv[first:last])

    def buffers(self, first: int, last: int) -> int:
        return self.compute[first == self.start, last == self.end] if last > first else 0

    def total(self, first: int, last: int) -> int:
        return self.model(first, last) + self.cache(first, last) + self.buffers(first, last)

    def spans(self, counts: Sequence[int]) -> list[tuple[int, int]]:
        """First and last layer of each backend, from how many each has."""
        bounds = [self.start, *(self.start + int(n) for n in np.cumsum(counts))]
        return list(pairwise(bounds))


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
    backends: Sequence[BackendMemory],
    context: int = 2048,
    parallel: int = 1,
    nodes: Sequence[str] | None = None,
    n_gpu_layers: int | None = None,
    kv_type: str = "f16",
) -> Plan:
    """Place a model over backends, or say what is missing.

    Layers follow the memory that the nodes have available, as llama.cpp itself would split; where that
    overfills a node, they are spread so that every node is filled to the same part of what it can give.

    Args:
        model: the file's facts.
        backends: in ``--rpc`` order; bytes as read on the nodes.
        context: ``--ctx-size``.
        parallel: ``--parallel``.
        nodes: only these of the backends.
        n_gpu_layers: ``-ngl``; all layers by default. With 0 nothing is placed and nothing refused.
        kv_type: ``--cache-type-k/-v``.

    Raises:
        HarnessError: unknown node, no backends, or a model that does not fit.
    """
    chosen = _choose(backends, nodes)
    layers_total = model.block_count + 1
    offload = max(_ALL_LAYERS, layers_total) if n_gpu_layers is None else n_gpu_layers
    costs = _costs(model, layers_total, offload, context, parallel, kv_type)
    counts = _place(model, chosen, costs, context)
    shares = [
        BackendShare(
            node=backend.node,
            endpoint=backend.endpoint,
            available_bytes=backend.available_bytes,
            # Layer counts as the split: whole numbers that llama.cpp places exactly as counted.
            weight=float(last - first) if any(counts) else float(backend.available_bytes // _MIB),
            layers=last - first,
            model_bytes=costs.model(first, last),
            kv_bytes=costs.cache(first, last),
            compute_bytes=costs.buffers(first, last),
        )
        for backend, (first, last) in zip(chosen, costs.spans(counts), strict=True)
    ]
    return Plan(
        model=model.path.stem,
        model_path=str(model.path),
        file_bytes=model.file_bytes,
        context=context,
        parallel=parallel,
        n_gpu_layers=offload,
        layers_total=layers_total,
        shares=shares,
    )


def _choose(backends: Sequence[BackendMemory], nodes: Sequence[str] | None) -> list[BackendMemory]:
    known = [b.node for b in backends]
    unknown = [name for name in nodes or () if name not in known]
    if unknown:
        raise HarnessError(
            f"no backend on node '{unknown[0]}'; backends are on: {', '.join(known) or 'no node'}"
        )
    chosen = [b for b in backends if nodes is None or b.node in nodes]
    if not chosen:
        raise HarnessError("no backends to place a model on; give a node the group 'backends'")
    return chosen


def _costs(
    model: GgufModel, layers_total: int, offload: int, context: int, parallel: int, kv_type: str
) -> _Costs:
    compute = {
        (first, last): compute_bytes(model, context, parallel, first, last)
        for first, last in product((False, True), repeat=2)
    }
    start = layers_total - min(offload, layers_total)
    return _Costs(weights(model), kv_bytes(model, context, parallel, kv_type), compute, start, layers_total)


def _place(model: GgufModel, backends: Sequence[BackendMemory], costs: _Costs, context: int) -> list[int]:
    """Layers per backend, none fuller than it may be."""
    offloaded = costs.end - costs.start
    if not offloaded:
        return [0] * len(backends)
    if any(b.available_bytes > 0 for b in backends):
        counts = split_layers([b.available_bytes / _MIB for b in backends], costs.end, offloaded)
        spans = zip(backends, costs.spans(counts), strict=True)
        if all(costs.total(*span) <= backend.usable_bytes for backend, span in spans):
            return counts
    balanced = _balance(backends, costs)
    if balanced is None:
        raise HarnessError(_refusal(model, backends, costs, context))
    return balanced


def _balance(backends: Sequence[BackendMemory], costs: _Costs) -> list[int] | None:
    """Layers per backend with the fullest node as empty as can be; None where nothing fits."""
    best = _fill(backends, costs, 1.0)
    low, high = 0.0, 1.0
    for _ in range(12 if best else 0):
        middle = (low + high) / 2
        counts = _fill(backends, costs, middle)
        if counts is None:
            low = middle
        else:
            best, high = counts, middle
    return best


def _fill(backends: Sequence[BackendMemory], costs: _Costs, part: float) -> list[int] | None:
    """Fill the backends in order, each up to ``part`` of what it can give; None if layers are left over."""
    counts, first = [], costs.start
    for backend in backends:
        last = first
        while last < costs.end and costs.total(first, last + 1) <= backend.usable_bytes * part:
            last += 1
        counts.append(last - first)
        first = last
    return counts if first == costs.end else None


def _refusal(model: GgufModel, backends: Sequence[BackendMemory], costs: _Costs, context: int) -> str:
    start, end = costs.start, costs.end
    buffers = costs.compute[True, False] + costs.compute[False, True]
    buffers += costs.compute[False, False] * (len(backends) - 2)
    needed = costs.model(start, end) + costs.cache(start, end) + max(buffers, costs.compute[True, True])
    usable = sum(b.usable_bytes for b in backends)
    each = ", ".join(f"{b.node} {_gib(b.usable_bytes)}" for b in backends[:_NAMED])
    if len(backends) > _NAMED:
        each += f", ... and {len(backends) - _NAMED} more"
    asks = f"model {model.path.stem} with context {context} needs {_gib(needed)} on the backends"
    if needed > usable:
        return (
            f"{asks} and they can give {_gib(usable)} ({each}): {_gib(needed - usable)} are missing; "
            "add a node, free memory or shorten the context"
        )
    largest = max(costs.total(i, i + 1) for i in range(start, end))
    return (
        f"{asks}; the sum of {_gib(usable)} would do, but whole layers of up to {_gib(largest)} do not fit "
        f"into what each node can give ({each}); add a node, free memory or shorten the context"
    )


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
