"""What a model's parts weigh in memory: layers, embeddings, output, KV cache and compute buffers."""

from dataclasses import dataclass

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from harness.errors import HarnessError
from harness.llama.gguf import GgufModel

_INPUT = ("token_embd", "position_embd", "token_types")
_SHARED = ("rope_freqs", "rope_factors_long", "rope_factors_short")
_KV_PADDING = 256
"""Cells of a sequence's cache are a multiple of this with flash attention (llama_kv_cache::get_padding)."""
_DISPATCHER_BUILD = 11434
"""The first release of the catalogue with asynchronous backends, which hold other buffers."""
_MICRO_BATCH = 512
"""llama-server's default ``--ubatch-size``."""
_FLOAT = 4
_HALF = 2


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's tensors by the place where llama.cpp keeps them (llama_model::load_tensors)."""

    layers: tuple[int, ...]
    """One number per repeating layer."""
    output: int
    """Final norm and output matrix: the layer after the last repeating one."""
    input: int
    """Token embedding: stays with the coordinator's CPU."""
    shared: int
    """Held once by each device that has a layer."""

    def of(self, first: int, last: int) -> int:
        """Bytes on a device with layers ``first`` up to but without ``last``; the output is the last one."""
        if first == last:
            return 0
        return sum((*self.layers, self.output)[first:last]) + self.shared


def weights(model: GgufModel) -> Weights:
    """Bytes of the model's tensors by place.

    Raises:
        HarnessError: the file is one part of a split model.
    """
    parts = model.metadata.get("split.count", 0)
    if parts and parts > 1:
        raise HarnessError(f"{model.path} is one of {parts} parts; join them with llama-gguf-split --merge")
    layers = [0] * model.block_count
    rest = {"output": 0, "input": 0, "shared": 0}
    for tensor in model.tensors:
        if tensor.layer is None:
            rest[tensor_place(tensor.name)] += tensor.bytes
        elif tensor.layer < len(layers):
            layers[tensor.layer] += tensor.bytes
    embedding = model.tensor("token_embd.weight")
    if embedding and model.tensor("output.weight") is None:
        # A tied output: the device of the output layer gets a copy of the embedding.
        rest["output"] += embedding.bytes
    return Weights(tuple(layers), **rest)


def tensor_place(name: str) -> str:
    """Where a tensor outside the layers is kept: ``input``, ``output``, or ``shared`` by all devices."""
    stem = name.removesuffix(".weight").removesuffix(".bias")
    if stem in _SHARED:
        return "shared"
    return "input" if stem.removesuffix("_norm") in _INPUT else "output"


def kv_bytes(model: GgufModel, context: int, parallel: int = 1, kv_type: str = "f16") -> tuple[int, ...]:
    """Bytes of the KV cache of each repeating layer.

    Args:
        model: dense, GQA or MoE; sliding windows are counted as the full context.
        context: ``--ctx-size``, tokens shared by all sequences.
        parallel: ``--parallel``, sequences; each one's share is rounded up.
        kv_type: ``--cache-type-k`` and ``-v``: f16, q8_0, ...

    Raises:
        HarnessError: an architecture whose cache is not keys and values, or an unknown type.
    """
    for key in ("ssm.state_size", "attention.kv_lora_rank", "wkv.head_size"):
        if model.get(key) is not None:
            raise HarnessError(
                f"{model.path}: cannot size the cache of architecture '{model.architecture}' ({key}); "
                "load it with explicit nodes and flags"
            )
    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kv_type.upper()]]
    except KeyError:
        raise HarnessError(f"no KV cache type '{kv_type}'; llama-server knows f16, q8_0, q4_0, ...") from None
    cells = cache_cells(context, parallel)
    per_head = model.key_length + model.value_length
    return tuple(heads * per_head * cells // block * int(block_bytes) for heads in model.kv_heads)


def cache_cells(context: int, parallel: int = 1) -> int:
    """Tokens that the KV cache has room for."""
    each = -(-context // parallel)
    return -(-each // _KV_PADDING) * _KV_PADDING * parallel


def compute_bytes(
    model: GgufModel, context: int, parallel: int, first: bool, last: bool, build: int | None = None
) -> int:
    """First estimate of a backend's compute buffer, flash attention on, micro-batches of 512.

    Fitted to what llama-server prints for llama models. Up to build 10566 (from above to 6751's for 1B, 13B
    and 70B): three feed-forward activations, two of the residual stream and the mask in half precision; the
    first device also holds the input and the mask in full precision; the last one the output's input, or the
    logits if larger. From 11434 on (within 0.1% of 11549's for 1B and 13B): three feed-forward activations,
    seven of the residual stream and eight bytes of mask; the first device holds nine more of the stream.

    Args:
        build: of llama.cpp; without it an older one is taken.
    """
    stream = model.embedding_length * _MICRO_BATCH * _FLOAT
    activations = 3 * model.feed_forward_length * _MICRO_BATCH * _FLOAT
    mask = cache_cells(context, parallel) // parallel * _MICRO_BATCH
    if build is not None and build >= _DISPATCHER_BUILD:
        return activations + (16 if first else 7) * stream + 8 * mask
    size = activations + 2 * stream + mask * _HALF
    if first:
        size += stream + mask * _FLOAT
    if last:
        logits = model.vocab_size * _MICRO_BATCH * _FLOAT
        size = stream + max(size, logits)
    return size
