"""What is missing where a model does not fit, and what would make it fit."""

from collections.abc import Callable, Sequence
from functools import partial

from harness.common.text import GIB, gib
from harness.llama.gguf import GgufModel
from harness.planner.device_capacity import DeviceCapacity
from harness.planner.memory import Costs

_NAMED = 8
_SHORTEST_CONTEXT = 512
_KV_TYPES = ("q8_0", "q4_0")
_LARGEST_NODE = 1 << 42
_gib = partial(gib, digits=2)

Fits = Callable[[Sequence[DeviceCapacity], int, str], bool]
"""Whether the model fits: devices, context and type of the KV cache."""


def explain_no_fit(
    model: GgufModel,
    devices: Sequence[DeviceCapacity],
    costs: Costs,
    *,
    context: int,
    kv_type: str,
    fits: Fits,
) -> str:
    """One line: what the model needs, what there is, and the changes that were found to work."""
    start, end = costs.start, costs.end
    buffers = costs.compute[True, False] + costs.compute[False, True]
    buffers += costs.compute[False, False] * (len(devices) - 2)
    needed = costs.model(start, end) + costs.cache(start, end) + max(buffers, costs.compute[True, True])
    usable = sum(device.usable_bytes for device in devices)
    each = ", ".join(f"{device.node} {_gib(device.usable_bytes)}" for device in devices[:_NAMED])
    if len(devices) > _NAMED:
        each += f", ... and {len(devices) - _NAMED} more"
    asks = f"model {model.path.stem} with context {context} needs {_gib(needed)} on the backends"
    remedies = "; or ".join(_remedies(devices, context, kv_type, fits)) or "free memory or add nodes"
    if needed > usable:
        missing = _gib(needed - usable)
        return f"{asks} and they can give {_gib(usable)} ({each}): {missing} are missing; {remedies}"
    largest = max(costs.total(i, i + 1) for i in range(start, end))
    return (
        f"{asks}; the sum of {_gib(usable)} would do, but whole layers of up to {_gib(largest)} do not fit "
        f"into what each node can give ({each}); {remedies}"
    )


def _remedies(devices: Sequence[DeviceCapacity], context: int, kv_type: str, fits: Fits) -> list[str]:
    changes = []
    if shorter := _longest(context, lambda tokens: fits(devices, tokens, kv_type)):
        changes.append(f"a context of {shorter} fits")
    smaller = _KV_TYPES[_KV_TYPES.index(kv_type) + 1 :] if kv_type in _KV_TYPES else _KV_TYPES
    if other := next((kind for kind in smaller if fits(devices, context, kind)), None):
        changes.append(f"a KV cache of type {other} fits")
    if node := _smallest_node(devices, lambda more: fits(more, context, kv_type)):
        changes.append(f"add one node with at least {_gib(node)} available")
    return changes


def _longest(context: int, fits: Callable[[int], bool]) -> int | None:
    """The longest context below ``context`` that fits, in steps of 256 tokens."""
    low, high = _SHORTEST_CONTEXT // 256, (context - 1) // 256
    if low > high or not fits(low * 256):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * 256) else (low, middle - 1)
    return low * 256


def _smallest_node(
    devices: Sequence[DeviceCapacity], fits: Callable[[Sequence[DeviceCapacity]], bool]
) -> int | None:
    """Memory that one more node must have available, to a sixteenth of a GiB."""
    step = GIB // 16

    def with_node(size: int) -> bool:
        return fits([*devices, DeviceCapacity("another", "0.0.0.0:0", size * step)])

    low, high = 1, _LARGEST_NODE // step
    if not with_node(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if with_node(middle) else (middle + 1, high)
    return low * step
