"""Bytes of any run of a model's layers, in constant time."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product

import numpy as np

from harness.llama.gguf import GgufModel
from harness.planner.memory import Weights, compute_bytes, kv_bytes, weights

ComputeBuffers = dict[tuple[bool, bool], int]
"""Bytes of a device's compute buffer, by whether it has the first layer, and the output."""


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
        return (
            int(self.model_sums[last] - self.model_sums[first]) + self.weights.shared if last > first else 0
        )

    def cache(self, first: int, last: int) -> int:
        """Bytes of the KV cache there."""
        return int(self.cache_sums[last] - self.cache_sums[first])

    def buffers(self, first: int, last: int) -> int:
        """Bytes of the compute buffer there."""
        return self.compute[first == self.start, last == self.end] if last > first else 0

    def total(self, first: int, last: int) -> int:
        """Everything that the device holds."""
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
        model: the file's facts.
        offload: ``-ngl``.
        context: ``--ctx-size``, tokens.
        parallel: ``--parallel``.
        kv_type: ``--cache-type-k`` and ``-v``.
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
