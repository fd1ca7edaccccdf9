"""Models and backends to plan with, as headers and sizes: no file is written."""

from pathlib import Path
from typing import Any

from harness.llama.gguf import GgufModel, Tensor
from harness.llama.synthetic.shapes import BASE_TYPES, SHAPES, plan_tensors
from harness.llama.synthetic.writer import tensor_bytes
from harness.planner.device_capacity import DeviceCapacity

GIB = 1 << 30
MIB = 1 << 20


def model(shape: str = "13b", kind: str = "Q4_0", **metadata: Any) -> GgufModel:
    """Facts of a model as its file would give them; no file is written."""
    s = SHAPES[shape]
    keys = {
        "general.architecture": "llama",
        "llama.block_count": s.layers,
        "llama.embedding_length": s.embedding,
        "llama.feed_forward_length": s.feed_forward,
        "llama.attention.head_count": s.heads,
        "llama.attention.head_count_kv": s.kv_heads,
        **metadata,
    }
    tensors = tuple(
        Tensor(t.name, t.type.name, t.shape[::-1], tensor_bytes(t), 0)
        for t in plan_tensors(s, BASE_TYPES[kind][0])
    )
    size = sum(t.bytes for t in tensors)
    return GgufModel(Path(f"/models/{shape}-{kind}.gguf".lower()), size, keys, tensors)


def backends(*gib: float) -> list[DeviceCapacity]:
    return [DeviceCapacity(f"node{i}", f"10.0.0.{i}:50052", int(g * GIB)) for i, g in enumerate(gib, 1)]
