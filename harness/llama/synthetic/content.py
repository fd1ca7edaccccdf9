"""Contents of a synthetic model: its vocabulary, and random quantised blocks."""

from collections.abc import Iterator
from importlib.resources import files
from itertools import islice, product

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, TokenType
from gguf.quants import dequantize
from numpy.typing import NDArray

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNKNOWN, BEGIN, END = 0, 1, 2
_SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
_SPACE = "▁"


def _pieces() -> Iterator[str]:
    """Every token's text after the special ones and the bytes, most useful first."""
    yield _SPACE
    yield from (chr(c) for c in range(0x21, 0x7F))
    for word in files(__package__).joinpath("words.txt").read_text().split():
        # Merging runs left to right, so each prefix has to be a token of its own.
        text = _SPACE + word
        yield from (text[:n] for n in range(2, len(text) + 1))
    syllables = [c + v for c, v in product("bdfghklmnprstvwz", "aeiou")]
    for count in (2, 3, 4):
        yield from (_SPACE + "".join(parts) for parts in product(syllables, repeat=count))


def make_vocabulary(size: int) -> tuple[list[str], list[float], list[int]]:
    """Texts, scores and types of ``size`` distinct tokens."""
    fixed = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    texts = list(islice(dict.fromkeys([*fixed, *islice(_pieces(), size + 4096)]), size))
    types = [TokenType.CONTROL] * len(_SPECIAL) + [TokenType.BYTE] * 256
    types[UNKNOWN] = TokenType.UNKNOWN
    types += [TokenType.NORMAL] * (size - len(types))
    scores = [0.0] * len(fixed) + [-float(rank) for rank in range(size - len(fixed))]
    return texts, scores, [int(t) for t in types[:size]]


Bytes = NDArray[np.uint8]
T = GGMLQuantizationType

WEIGHT_STD = 0.02
"""Standard deviation of the weights, as transformers are initialised."""
_POOL_BYTES = 32 << 20
_SLICE_BYTES = 4 << 20

# Byte offsets of the half-precision scales in a block, each with its factor (ggml-common.h). Q4_K's minimum
# is 7.5 times its scale, so that its weights are centred: quants are 0..15, scales and minima both 0..63.
# Q5_K's quants are 0..31.
_SCALES: dict[GGMLQuantizationType, tuple[tuple[int, float], ...]] = {
    T.Q4_0: ((0, 1.0),),
    T.Q5_0: ((0, 1.0),),
    T.Q8_0: ((0, 1.0),),
    T.Q4_K: ((0, 1.0), (2, 7.5)),
    T.Q5_K: ((0, 1.0), (2, 15.5)),
    T.Q6_K: ((208, 1.0),),
    T.TQ1_0: ((52, 1.0),),
    T.TQ2_0: ((64, 1.0),),
}
_TERNARY_QUANTS = 64
"""Bytes of a TQ2_0 block that hold four two-bit values of 0, 1 or 2."""


def random_pool(kind: GGMLQuantizationType, rng: np.random.Generator, size: int = _POOL_BYTES) -> Bytes:
    """About ``size`` bytes of whole blocks whose weights have mean 0 and ``WEIGHT_STD``."""
    if kind is T.F16:
        return (rng.standard_normal(size // 2, dtype=np.float32) * WEIGHT_STD).astype("<f2").view(np.uint8)
    block_bytes = GGML_QUANT_SIZES[kind][1]
    blocks = (
        np.frombuffer(rng.bytes(size // block_bytes * block_bytes), np.uint8).reshape(-1, block_bytes).copy()
    )
    if kind is T.TQ2_0:
        digits = rng.integers(0, 3, (len(blocks), _TERNARY_QUANTS, 4), dtype=np.uint8)
        blocks[:, :_TERNARY_QUANTS] = (digits << np.array([0, 2, 4, 6], np.uint8)).sum(axis=2, dtype=np.uint8)
    _set_scales(kind, blocks, 1.0)
    sample = dequantize(blocks[:4096], kind)
    _set_scales(kind, blocks, WEIGHT_STD / float(sample.std()))
    return blocks.reshape(-1)


def _set_scales(kind: GGMLQuantizationType, blocks: Bytes, scale: float) -> None:
    for offset, factor in _SCALES[kind]:
        blocks[:, offset : offset + 2] = np.array([scale * factor], "<f2").view(np.uint8)


def stream(pool: Bytes, size: int, block_bytes: int, rng: np.random.Generator) -> Iterator[Bytes]:
    """``size`` bytes as slices of ``pool`` from random blocks on: memory speed, and no two tensors alike."""
    whole = max(1, min(_SLICE_BYTES, len(pool) // 2) // block_bytes) * block_bytes
    starts = (len(pool) - whole) // block_bytes
    while size > 0:
        start = int(rng.integers(0, starts + 1)) * block_bytes
        length = min(size, whole)
        yield pool[start : start + length]
        size -= length
