"""Bytes of a model's parts: layers, output, KV cache, compute buffers; and of any run of its layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from harness.contracts.plan import Plan
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
_PLACES = {(True, False): "first", (False, False): "middle", (False, True): "last", (True, True): "only"}

ComputeBuffers = dict[tuple[bool, bool], int]
"""Bytes of a device's compute buffer, by whether it has the first layer, and the output."""
Learned = dict[str, dict[str, int]]
"""By shape of a load the bytes of a device's compute buffer, by the place that the device has in it."""


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


def weights(model: GgufModel) -> Weights:
    """Bytes of the model's tensors by place.

    Raises:
        HarnessError: the file is one part of a split model.
    """
    parts = model.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
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
    Without ``build`` an older one is taken.
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


@dataclass(frozen=True)
class Costs:
    """Bytes of any run of the layers that are to be placed: ``start`` up to, but without, ``end``."""

    weights: Weights
    compute: ComputeBuffers
    start: int
    end: int
    model_sums: np.ndarray
    """Bytes of the layers before each, the output counted as the last; ``end + 1`` numbers."""
    cache_sums: np.ndarray
    """The same for the KV cache."""

    def model(self, first: int, last: int) -> int:
        """Bytes of tensors on a device with layers ``first`` up to, but without, ``last``."""
        own = int(self.model_sums[last] - self.model_sums[first])
        return own + self.weights.shared if last > first else 0

    def cache(self, first: int, last: int) -> int:
        return int(self.cache_sums[last] - self.cache_sums[first])

    def buffers(self, first: int, last: int) -> int:
        return self.compute[first == self.start, last == self.end] if last > first else 0

    def total(self, first: int, last: int) -> int:
        return self.model(first, last) + self.cache(first, last) + self.buffers(first, last)

    def spans(self, counts: Sequence[int]) -> list[tuple[int, int]]:
        """First and last layer of each device, from how many each has."""
        return list(pairwise(accumulate((int(n) for n in counts), initial=self.start)))


def model_costs(
    model: GgufModel,
    *,
    offload: int,
    context: int,
    parallel: int,
    kv_type: str,
    build: int | None = None,
    learned: ComputeBuffers | None = None,
) -> Costs:
    """Costs of the last ``offload`` layers of a model.

    Args:
        offload: ``-ngl``.
        build: of llama.cpp: releases differ in their compute buffers.
        learned: compute buffers that an earlier load of this shape printed; estimated where there is none.

    Raises:
        HarnessError: an architecture or a cache type that cannot be sized.
    """
    parts = weights(model)
    end = model.block_count + 1
    compute = {
        (first, last): compute_bytes(model, context, parallel, first, last, build)
        for first, last in product((False, True), repeat=2)
    }
    return Costs(
        parts,
        compute | (learned or {}),
        end - min(offload, end),
        end,
        np.cumsum((0, *parts.layers, parts.output), dtype=np.int64),
        np.cumsum((0, *kv_bytes(model, context, parallel, kv_type), 0), dtype=np.int64),
    )


def load_shape(model: GgufModel, build: int | None, context: int, parallel: int, kv_type: str) -> str:
    """What decides the size of the compute buffers besides a device's place, as one key.

    An unknown build is a shape of its own.
    """
    widths = (model.embedding_length, model.feed_forward_length, model.vocab_size, max(model.heads))
    sizes = "x".join(map(str, widths))
    return f"{build}:{model.architecture}:{sizes}:{cache_cells(context, parallel)}/{parallel}:{kv_type}"


def compute_buffers(learned: Learned, shape: str) -> ComputeBuffers:
    """What earlier loads of this shape printed; empty where there was none."""
    buffers = learned.get(shape, {})
    return {place: buffers[name] for place, name in _PLACES.items() if name in buffers}


def with_buffers(plan: Plan, printed: dict[str, int]) -> Plan:
    """The plan with the compute buffers that its load printed by endpoint, for backends of one device."""
    single = [e for e in plan.endpoints if sum(share.endpoint == e for share in plan.shares) == 1]
    shares = [
        share.model_copy(update={"compute_bytes": printed[share.endpoint]})
        if share.endpoint in single and share.endpoint in printed
        else share
        for share in plan.shares
    ]
    return plan.model_copy(update={"shares": shares})


def learn(learned: Learned, shape: str, plan: Plan, printed: dict[str, int]) -> Learned:
    """``learned`` and what this load printed.

    Args:
        plan: of the load; only a full distribution over backends of one device each teaches something.
        printed: bytes of the compute buffer by endpoint, as the log has them.
    """
    used = [share for share in plan.shares if share.layers]
    if not plan.distributed or len(used) != len({share.endpoint for share in used}):
        return learned
    buffers = dict(learned.get(shape, {}))
    for index, share in enumerate(used):
        if size := printed.get(share.endpoint):
            name = _PLACES[index == 0, index == len(used) - 1]
            buffers[name] = max(size, buffers.get(name, 0))
    return learned | {shape: buffers}
