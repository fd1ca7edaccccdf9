"""Placement by speed: the split with the shortest time per token that fits into memory."""

from collections.abc import Callable, Sequence

import numpy as np

from harness.planner.device_capacity import DeviceCapacity
from harness.planner.memory import Costs

WORTHWHILE_RATIO = 0.97
"""A split by speed replaces llama.cpp's own only where it takes less than this part of its time: measured
speeds of equal machines differ by a few percent."""
_BALANCED_RATIO = 1.02
"""A balanced split is preferred to the fastest one if it takes at most this much longer."""

Split = Callable[[Sequence[DeviceCapacity]], list[int] | None]
"""Layers per device of a split by memory; None where nothing fits."""


def token_seconds(devices: Sequence[DeviceCapacity], costs: Costs, counts: Sequence[int]) -> float:
    """Time per token: the devices work one after the other, each on its layers."""
    spans = zip(devices, costs.spans(counts), strict=True)
    return sum(device.seconds(costs.model(*span)) for device, span in spans)


def faster_split(
    devices: Sequence[DeviceCapacity], costs: Costs, by_memory: Sequence[int] | None, split: Split
) -> list[int] | None:
    """Layers per device that take clearly less time per token than ``by_memory``; None where nothing does.

    Balanced splits over only the faster devices are tried first, from the fastest on; the exact optimum is
    taken where none of them comes near it. A device whose speed is not known ends the attempt.

    Args:
        by_memory: the split to beat; None where no split by memory fits.
        split: the split by memory over some of the devices.
    """
    if any(device.bytes_per_s is None for device in devices):
        return None
    best = fastest_split(devices, costs)
    if best is None:
        return None
    best_s = token_seconds(devices, costs, best)
    if by_memory is not None and best_s >= WORTHWHILE_RATIO * token_seconds(devices, costs, by_memory):
        return None
    for counts in _balanced(devices, split):
        if token_seconds(devices, costs, counts) <= _BALANCED_RATIO * best_s:
            return counts
    return best


def _balanced(devices: Sequence[DeviceCapacity], split: Split) -> list[list[int]]:
    """Splits by memory over the one, two, three ... fastest devices, those that fit."""
    rates = [device.bytes_per_s or 0.0 for device in devices]
    order = sorted(range(len(devices)), key=lambda index: -rates[index])
    splits = []
    low, high = 1, len(order)
    while low < high:  # the fewest that hold the model: more can only be more
        middle = (low + high) // 2
        if split([devices[i] for i in sorted(order[:middle])]) is None:
            low = middle + 1
        else:
            high = middle
    for count in range(low, len(order)):
        chosen = sorted(order[:count])
        if (part := split([devices[i] for i in chosen])) is not None:
            counts = [0] * len(devices)
            for index, layers in zip(chosen, part, strict=True):
                counts[index] = layers
            splits.append(counts)
    return splits


def fastest_split(devices: Sequence[DeviceCapacity], costs: Costs) -> list[int] | None:
    """Layers per device with the least time per token, each within its memory; None where nothing fits.

    Exact, by dynamic programming over devices and first layers: ``devices x layers^2`` steps in NumPy.
    """
    layers = costs.end - costs.start
    first, last = np.meshgrid(np.arange(layers + 1), np.arange(layers + 1), indexing="ij")
    some, none = last > first, last == first
    model = costs.model_sums[costs.start :]
    weight = np.where(some, model[last] - model[first] + costs.weights.shared, 0)
    cache = costs.cache_sums[costs.start :]
    compute = np.where(
        first == 0,
        np.where(last == layers, costs.compute[True, True], costs.compute[True, False]),
        np.where(last == layers, costs.compute[False, True], costs.compute[False, False]),
    )
    total = np.where(some, weight + cache[last] - cache[first] + compute, 0)
    reached = np.full(layers + 1, np.inf)
    reached[0] = 0.0
    came_from = []
    for device in devices:
        time = weight / (device.bytes_per_s or np.inf)
        fits = none | (some & (total <= device.usable_bytes))
        paths = np.where(fits, reached[:, None] + time, np.inf)
        came_from.append(paths.argmin(axis=0))
        reached = paths.min(axis=0)
    if not np.isfinite(reached[layers]):
        return None
    counts, end = [], layers
    for origins in reversed(came_from):
        counts.append(end - int(origins[end]))
        end = int(origins[end])
    return counts[::-1]
