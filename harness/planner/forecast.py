"""Forecast of a load: lower bounds by network, hashing and disk, swap; the tensors that backends cache."""

from collections import Counter
from dataclasses import dataclass

from harness.contracts.plan import LoadForecast, Plan
from harness.llama.gguf import GgufModel, Tensor
from harness.llama.rpc.messages import HASH_THRESHOLD_BYTES
from harness.planner.memory import tensor_place


@dataclass(frozen=True)
class Rates:
    """What is assumed of the machines, in bytes per second."""

    link_bytes_per_s: float = 125e6
    """From the head node to a backend: 1 Gbit/s."""
    disk_bytes_per_s: float = 500e6
    """Of the head node, reading the model with a cold page cache."""
    hash_bytes_per_s: float = 750e6
    """Of llama.cpp's hash of a tensor, on the head node."""

    @property
    def cold_bytes_per_s(self) -> float:
        """Of a load that hashes every tensor and sends it over the network, one after the other."""
        return 1 / (1 / self.hash_bytes_per_s + 1 / self.link_bytes_per_s)

    @property
    def warm_bytes_per_s(self) -> float:
        """Of a load whose tensors are in the backends' caches."""
        return min(self.disk_bytes_per_s, self.hash_bytes_per_s)


DEFAULT_RATES = Rates()


def forecast_load(model: GgufModel, plan: Plan, head: str, rates: Rates = DEFAULT_RATES) -> LoadForecast:
    """What a first load of ``plan`` takes at least; what goes to the backend of ``head`` crosses no link."""
    wire, swap = Counter[str](), Counter[str]()
    for share in plan.shares:
        if share.left_bytes < 0:
            swap[share.node] -= share.left_bytes
        if share.node != head and share.model_bytes:
            wire[share.node] += share.model_bytes
    hashed = sum(tensor.bytes for tensors in cached_tensors(model, plan).values() for tensor in tensors)
    wire_s = wire.total() / rates.link_bytes_per_s
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


def cached_tensors(model: GgufModel, plan: Plan) -> dict[str, list[Tensor]]:
    """By node, the tensors that its rpc-server is offered by their hash: those over 10 MiB of its layers."""
    by_node: dict[str, list[Tensor]] = {}
    first = plan.layers_total - min(plan.n_gpu_layers, plan.layers_total)
    output = model.block_count
    tied = model.tensor("output.weight") is None
    for share in plan.shares:
        last = first + share.layers
        tensors = by_node.setdefault(share.node, [])
        for tensor in model.tensors:
            layer = tensor.layer
            # The output layer has what belongs to it; a tied embedding is copied there.
            if layer is None and (
                tensor_place(tensor.name) == "output" or (tied and tensor.name == "token_embd.weight")
            ):
                layer = output
            if layer is not None and first <= layer < last and tensor.bytes > HASH_THRESHOLD_BYTES:
                tensors.append(tensor)
        first = last
    return {node: tensors for node, tensors in by_node.items() if tensors}
