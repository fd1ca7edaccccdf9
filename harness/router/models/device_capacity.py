"""What each backend can give now: from its node's sample where there is one, else as the inventory says."""

from collections.abc import Mapping, Sequence

from harness.llama.gguf import GgufModel
from harness.monitor.sample import RPC_SERVERS, Sample
from harness.planner.device_capacity import BackendMemory, Speed
from harness.planner.placement import head_share
from harness.router.config import Backend


def backend_devices(
    backends: Sequence[Backend],
    samples: Mapping[str, Sample],
    speeds: Mapping[str, Speed],
    head_address: str,
    model: GgufModel,
) -> list[BackendMemory]:
    """The devices of the backends, in their order, with what they can give once nothing is loaded.

    Args:
        backends: as configured.
        samples: the newest of each node; a node without one is taken as the inventory describes it.
        speeds: by node, as calibrated.
        head_address: the head node's: its own backend leaves room for the coordinator.
        model: whose token embedding stays with the coordinator.
    """
    found = []
    for backend in backends:
        reserve = backend.reserve_bytes
        if backend.endpoint.partition(":")[0] == head_address and backend.accelerator == "cpu":
            reserve = max(reserve or 0, head_share(model))
        found += [
            BackendMemory(
                node=backend.node,
                endpoint=backend.endpoint,
                available_bytes=size,
                reserve_bytes=reserve,
                device=device,
                speed=speeds.get(backend.node),
            )
            for device, size in enumerate(_available(backend, samples.get(backend.node)))
        ]
    return found


def _available(backend: Backend, sample: Sample | None) -> list[int]:
    """Bytes of each device. A GPU host gives its VRAM alone: rpc-server offers accelerators only."""
    if sample is None:
        return [backend.memory_bytes]
    if backend.accelerator != "cpu":
        # What rpc-server holds of a model now is given back when its coordinator goes: all of it counts.
        return [gpu.memory_total_bytes for gpu in sample.gpus if gpu.memory_total_bytes] or [
            backend.memory_bytes
        ]
    held = sum(process.rss_bytes for process in sample.processes if process.name in RPC_SERVERS)
    return [min(backend.memory_bytes, sample.memory.available_bytes + held)]
