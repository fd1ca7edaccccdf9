"""Memory that a GPU host's devices can give: what its rpc-server offers, less what others hold."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.monitor.sample import Gpu, GpuSource, Sample

DEVICE_NAMES = {"cuda": "CUDA", "rocm": "ROCm", "vulkan": "Vulkan"}
"""What llama.cpp calls the devices of each kind of accelerator, before their number."""
_SOURCES = {"CUDA": GpuSource.NVML, "ROCm": GpuSource.AMDGPU}
_SAME_BOARD = 0.1
"""CUDA's total is up to a few percent less than the driver's: it leaves out what the driver keeps."""


@dataclass(frozen=True)
class OfferedDevice:
    """A device as an idle rpc-server described it. Sizes in bytes."""

    name: str
    """As in ``CUDA0`` or ``CPU``."""
    total_bytes: int
    free_bytes: int
    """At that moment."""


def name_devices(accelerator: str, given: Sequence[str], count: int) -> list[str]:
    """Names of ``count`` devices in rpc-server's order: the inventory's, then those of that kind."""
    more = (f"{DEVICE_NAMES[accelerator]}{index}" for index in range(len(given), count))
    return [*given, *more]


def devices_of_sample(accelerator: str, given: Sequence[str], sample: Sample) -> list[OfferedDevice]:
    """The devices that a node's monitor shows, for a node whose rpc-server was never idle when we looked.

    GPUs of another kind are left out, so that the display of the processor is not taken for a device.
    """
    source = _SOURCES.get(DEVICE_NAMES[accelerator])
    gpus = [gpu for gpu in sample.gpus if source in (None, gpu.source)]
    found = []
    for name in name_devices(accelerator, given, len(gpus)):
        gpu = _find_gpu(name, sample)
        total = sample.memory.total_bytes if name == "CPU" or (gpu and gpu.unified) else None
        total = (gpu.memory_total_bytes if gpu else None) or total
        if total is None:
            return []
        found.append(OfferedDevice(name, total, total))
    return found


def available_bytes(device: OfferedDevice, sample: Sample | None, node_bytes: int | None) -> int:
    """What a plan may put on the device once the present model is unloaded.

    Args:
        device: as its rpc-server offered it.
        sample: the newest of the node; None leaves what was free when the rpc-server was asked.
        node_bytes: memory of the node that is available then; None as for ``sample``.
    """
    if sample is None or node_bytes is None:
        return device.free_bytes
    if device.name == "CPU":
        return min(device.total_bytes, node_bytes)
    gpu = _find_gpu(device.name, sample)
    if gpu is None or gpu.problem:
        return device.free_bytes
    if gpu.unified:
        return min(device.total_bytes, node_bytes + (gpu.memory_own_bytes or 0))
    if gpu.memory_total_bytes is None or not _same_size(device.total_bytes, gpu.memory_total_bytes):
        return device.free_bytes
    return max(0, min(device.total_bytes, gpu.memory_total_bytes) - _held_by_others(gpu, sample))


def disagreement(devices: Sequence[OfferedDevice], given: Sequence[str], sample: Sample | None) -> str | None:
    """Why an rpc-server does not offer what the inventory says of its node; None where it does.

    Args:
        devices: those that it offers, named in order.
        given: names in the inventory; none for every accelerator.
        sample: the newest of its node, to tell a processor's memory from a board's.
    """
    if given and len(given) != len(devices):
        return f"it offers {len(devices)} devices and the inventory says {', '.join(given)}"
    if sample is None or any(gpu.unified for gpu in sample.gpus):
        return None
    boards = [gpu.memory_total_bytes for gpu in sample.gpus if gpu.memory_total_bytes]
    for device in devices:
        size = device.total_bytes
        is_board = any(_same_size(size, board) for board in boards)
        if device.name != "CPU" and not is_board and _same_size(size, sample.memory.total_bytes):
            return f"instead of {device.name} it offers the node's memory: it computes on the CPU"
    return None


def _find_gpu(name: str, sample: Sample) -> Gpu | None:
    """The GPU of a device; drivers and rpc-server number them alike (CUDA_DEVICE_ORDER=PCI_BUS_ID)."""
    kind, number = re.fullmatch(r"(\D+?)(\d*)", name).groups()  # type: ignore[union-attr]
    if kind in _SOURCES:
        ours = [gpu for gpu in sample.gpus if gpu.source is _SOURCES[kind]]
        return next((gpu for gpu in ours if str(gpu.index) == number), None)
    # Vulkan has an order of its own.
    return sample.gpus[0] if kind == DEVICE_NAMES["vulkan"] and len(sample.gpus) == 1 else None


def _held_by_others(gpu: Gpu, sample: Sample) -> int:
    """Memory of a board that is in use and not our rpc-server's, in bytes."""
    used = gpu.memory_used_bytes or 0
    if gpu.memory_own_bytes is not None:
        return max(0, used - gpu.memory_own_bytes)
    # The driver does not say whose it is: an idle rpc-server holds next to nothing, a busy one most of it.
    return 0 if sample.rpc and sample.rpc.peer else used


def _same_size(a: int, b: int) -> bool:
    return abs(a - b) <= _SAME_BOARD * max(a, b)
