"""Shapes of known models: what a synthetic model copies, tensor by tensor."""

from collections.abc import Iterator
from dataclasses import dataclass

from gguf.constants import GGMLQuantizationType, LlamaFileType

from harness.errors import HarnessError

T = GGMLQuantizationType
F = LlamaFileType


@dataclass(frozen=True)
class Shape:
    """Dimensions of a llama-architecture model, in elements."""

    name: str
    like: str
    """The model whose shape it is."""
    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    rope_base: float
    rope_factors: bool = False
    """Llama 3.1 and later carry a tensor of rotary frequency factors."""
    tied_output: bool = False
    """The token embedding serves as the output matrix too."""

    @property
    def head_size(self) -> int:
        return self.embedding // self.heads


SHAPES = {
    s.name: s
    for s in (
        Shape("13b", "CodeLlama 13B", 40, 5120, 13824, 40, 40, 32016, 16384, 1e6),
        Shape("70b", "Llama 3.1 70B", 80, 8192, 28672, 64, 8, 128256, 131072, 5e5, rope_factors=True),
        Shape(
            "1b",
            "Llama 3.2 1B",
            16,
            2048,
            8192,
            32,
            8,
            128256,
            131072,
            5e5,
            rope_factors=True,
            tied_output=True,
        ),
        # For tests: every part of a model, in a megabyte.
        Shape("tiny", "no model", 4, 256, 512, 4, 2, 1024, 2048, 1e4),
    )
}

BASE_TYPES = {
    "F16": (T.F16, F.MOSTLY_F16),
    "Q4_0": (T.Q4_0, F.MOSTLY_Q4_0),
    "Q5_0": (T.Q5_0, F.MOSTLY_Q5_0),
    "Q8_0": (T.Q8_0, F.MOSTLY_Q8_0),
    "Q4_K_M": (T.Q4_K, F.MOSTLY_Q4_K_M),
    "Q6_K": (T.Q6_K, F.MOSTLY_Q6_K),
    "TQ1_0": (T.TQ1_0, F.MOSTLY_TQ1_0),
    "TQ2_0": (T.TQ2_0, F.MOSTLY_TQ2_0),
}
"""Quantisations that llama-quantize gives every layer matrix alike; Q4_K_M gives some of them more bits."""


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    """Elements, slowest dimension first (rows, columns)."""


def find_shape(name: str) -> Shape:
    """The shape called ``name``; a HarnessError where there is none."""
    if name.lower() not in SHAPES:
        raise HarnessError(f"no shape '{name}'; known shapes: {', '.join(SHAPES)}")
    return SHAPES[name.lower()]


def find_type(name: str) -> tuple[GGMLQuantizationType, LlamaFileType]:
    """ggml type and file type of a quantisation; a HarnessError where it cannot be made."""
    if name.upper() not in BASE_TYPES:
        raise HarnessError(f"no quantisation '{name}'; known: {', '.join(BASE_TYPES)}")
    return BASE_TYPES[name.upper()]


def plan_tensors(shape: Shape, base: GGMLQuantizationType) -> Iterator[PlannedTensor]:
    """Tensors of a model in file order, typed as llama-quantize would type them (build 6751)."""
    width, hidden, vocabulary = shape.embedding, shape.feed_forward, shape.vocabulary
    kv = shape.kv_heads * shape.head_size
    output = base if base in (T.Q8_0, T.F16) else T.Q6_K
    embedding = T.Q4_K if base in (T.TQ1_0, T.TQ2_0) else base
    yield PlannedTensor("token_embd.weight", output if shape.tied_output else embedding, (vocabulary, width))
    if shape.rope_factors:
        yield PlannedTensor("rope_freqs.weight", T.F32, (shape.head_size // 2,))
    for i in range(shape.layers):
        blk = f"blk.{i}"
        yield PlannedTensor(f"{blk}.attn_norm.weight", T.F32, (width,))
        yield PlannedTensor(f"{blk}.attn_q.weight", base, (width, width))
        yield PlannedTensor(f"{blk}.attn_k.weight", base, (kv, width))
        yield PlannedTensor(f"{blk}.attn_v.weight", _value_type(base, shape, i), (kv, width))
        yield PlannedTensor(f"{blk}.attn_output.weight", base, (width, width))
        yield PlannedTensor(f"{blk}.ffn_norm.weight", T.F32, (width,))
        yield PlannedTensor(f"{blk}.ffn_gate.weight", base, (hidden, width))
        yield PlannedTensor(f"{blk}.ffn_up.weight", base, (hidden, width))
        yield PlannedTensor(f"{blk}.ffn_down.weight", _mixed(base, shape, i), (width, hidden))
    yield PlannedTensor("output_norm.weight", T.F32, (width,))
    if not shape.tied_output:
        yield PlannedTensor("output.weight", output, (vocabulary, width))


def _mixed(base: GGMLQuantizationType, shape: Shape, layer: int) -> GGMLQuantizationType:
    """Type of a matrix that Q4_K_M gives more bits in some layers (``use_more_bits``, llama-quant.cpp)."""
    eighth = shape.layers // 8
    more = layer < eighth or layer >= 7 * shape.layers // 8 or (layer - eighth) % 3 == 2
    return T.Q6_K if base is T.Q4_K and more else base


def _value_type(base: GGMLQuantizationType, shape: Shape, layer: int) -> GGMLQuantizationType:
    """As ``_mixed``; where eight heads share the values, as in a 70B, these get five bits at least."""
    mixed = _mixed(base, shape, layer)
    return T.Q5_K if mixed is T.Q4_K and shape.name == "70b" else mixed
