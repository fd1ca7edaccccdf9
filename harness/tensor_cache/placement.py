"""Which tensors of a model's file a plan puts on which backend, and which of them a tensor cache keeps."""

from harness.contracts.plan import Plan
from harness.llama.gguf import GgufModel, Tensor
from harness.planner.memory import tensor_place

OFFERED_BYTES = 10 * 1024 * 1024
"""Tensors over this size are offered to a backend's cache by their hash first (ggml-rpc's HASH_THRESHOLD)."""


def cached_tensors(model: GgufModel, plan: Plan) -> dict[str, list[Tensor]]:
    """By node, the tensors that its rpc-server is offered by their hash: those over 10 MiB of its layers.

    Args:
        model: the file's facts.
        plan: of that file.
    """
    found: dict[str, list[Tensor]] = {}
    first = plan.layers_total - min(plan.n_gpu_layers, plan.layers_total)
    output = model.block_count
    tied = model.tensor("output.weight") is None
    for share in plan.shares:
        last = first + share.layers
        tensors = found.setdefault(share.node, [])
        for tensor in model.tensors:
            layer = tensor.layer if tensor.layer is not None else _layer(tensor, output, tied)
            if layer is not None and first <= layer < last and tensor.bytes > OFFERED_BYTES:
                tensors.append(tensor)
        first = last
    return {node: tensors for node, tensors in found.items() if tensors}


def _layer(tensor: Tensor, output: int, tied: bool) -> int | None:
    """The output layer for what belongs to it; a tied embedding is copied there."""
    place = tensor_place(tensor.name)
    if place == "output" or (tied and tensor.name == "token_embd.weight"):
        return output
    return None
