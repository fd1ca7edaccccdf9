"""Facts of a GGUF file, from its header alone: shapes, types and where each tensor lies.

``gguf.GGUFReader`` builds an array per vocabulary entry (9 s for the 128,256 tokens of Llama 3), so the
header is walked here and long arrays are stepped over; block sizes come from the ``gguf`` package.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).

A file can hold any number, so each number has a bound, and so have the time and memory that
reading takes (tests/unit/llama/test_gguf.py has the worst files). It is read and not mapped: a file that is
cut while it is mapped ends the process that reads it (SIGBUS).
"""

import os
import re
import stat
import struct
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from harness.errors import HarnessError

_MAGIC = b"GGUF"
_DEFAULT_ALIGNMENT = 32
_KEPT_ARRAY = 1024
"""Longer arrays (the vocabulary) are counted, not read; per-layer arrays are shorter."""
_WINDOW = 1 << 20
"""Bytes read at once."""
_MOST_HEADER_BYTES = 256 << 20
_MOST_TEXT_BYTES = 16 << 20
"""Of all strings that are kept, names included."""
_MOST_KEYS = 4096
_MOST_VALUES = 4_000_000
"""Of all arrays together, kept or stepped over; the largest vocabularies with their merges have a fifth."""
_KEPT_COST = 64
"""A value that is kept counts as this many that are stepped over."""
_MOST_TENSORS = 65_536
_MOST_DIMENSIONS, _MOST_NAME_BYTES = 4, 64
"""GGML_MAX_DIMS and GGML_MAX_NAME: llama.cpp refuses more too."""
_MOST_ALIGNMENT = 1 << 20
_SCALARS = {
    kind: struct.Struct(f"<{letter}")
    for kind, letter in [*enumerate("BbHhIif?"), (10, "Q"), (11, "q"), (12, "d")]
}
"""Layouts by the number of a value's type; 4 is uint32, 10 uint64."""
_STRING, _ARRAY = 8, 9
_MOST = {
    "block_count": 4096,
    "embedding_length": 1 << 20,
    "feed_forward_length": 1 << 22,
    "context_length": 1 << 32,
    "attention.head_count": 1024,
    "attention.head_count_kv": 1024,
    "attention.key_length": 4096,
    "attention.value_length": 4096,
    "vocab_size": 1 << 24,
}
"""Largest value of each number that sizes are computed with: a product of them all stays below 2^63."""
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class Tensor:
    """One tensor as the header describes it."""

    name: str
    type: str
    """ggml's name of the quantisation: ``Q4_0``, ``F32``, ..."""
    shape: tuple[int, ...]
    """Elements per dimension, fastest first, as ggml counts them."""
    bytes: int
    offset: int
    """From the start of the file."""

    @property
    def layer(self) -> int | None:
        """Number of the repeating layer it belongs to; None for embeddings, output and shared tensors."""
        match = _LAYER.match(self.name)
        return int(match[1]) if match else None


@dataclass(frozen=True)
class SkippedArray:
    """A long array that was stepped over: only its length is known."""

    length: int


@dataclass(frozen=True)
class GgufModel:
    """A model file's facts. Sizes are bytes, dimensions elements."""

    path: Path
    file_bytes: int
    metadata: dict[str, Any] = field(repr=False)
    tensors: tuple[Tensor, ...] = field(repr=False)

    @property
    def architecture(self) -> str:
        """``general.architecture``: llama, qwen2, ..."""
        return str(self.metadata["general.architecture"])

    @property
    def name(self) -> str:
        """``general.name``, or the file's stem where there is none."""
        return str(self.metadata.get("general.name") or self.path.stem)

    @property
    def synthetic(self) -> bool:
        """Whether its weights are random (``harness model synth``)."""
        return bool(self.metadata.get("llama_harness.synthetic", False))

    def get(self, key: str, default: Any = None) -> Any:
        """Value of ``<architecture>.<key>``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def count(self, key: str) -> int:
        """Integer value of ``<architecture>.<key>``; a HarnessError where the header has no such number."""
        return self._in_range(key, self.get(key))

    def _in_range(self, key: str, value: Any) -> int:
        name = f"{self.architecture}.{key}"
        if not isinstance(value, int):
            raise HarnessError(f"{self.path}: GGUF header has no number '{name}'")
        fewest = 1 if key == "block_count" else 0
        if not fewest <= value <= _MOST[key]:
            raise HarnessError(
                f"{self.path}: GGUF header says {name} = {value}; known are {fewest} to {_MOST[key]}"
            )
        return value

    @property
    def block_count(self) -> int:
        return self.count("block_count")

    @property
    def embedding_length(self) -> int:
        return self.count("embedding_length")

    @property
    def feed_forward_length(self) -> int:
        """Width of the feed-forward part (the widest layer's)."""
        return max(self.per_layer("feed_forward_length"))

    @property
    def context_length(self) -> int:
        return self.count("context_length")

    @property
    def heads(self) -> list[int]:
        return self.per_layer("attention.head_count")

    @property
    def kv_heads(self) -> list[int]:
        """Key/value heads of each repeating layer (fewer than ``heads`` with GQA)."""
        key = "attention.head_count_kv"
        return self.heads if self.get(key) is None else self.per_layer(key)

    @property
    def key_length(self) -> int:
        return self._head_length("attention.key_length")

    @property
    def value_length(self) -> int:
        return self._head_length("attention.value_length")

    def _head_length(self, key: str) -> int:
        """Elements of one head."""
        return self.count(key) if self.get(key) else self.embedding_length // max(1, *self.heads)

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary: the rows of the token embedding."""
        embedding = self.tensor("token_embd.weight")
        return embedding.shape[1] if embedding else self.count("vocab_size")

    @cached_property
    def quantisation(self) -> str:
        """``Q4_0``, ``Q4_K_M``, ...: the header's file type, or the type that most bytes have."""
        file_type = self.metadata.get("general.file_type")
        if isinstance(file_type, int) and file_type in set(LlamaFileType):
            return str(LlamaFileType(file_type).name).removeprefix("MOSTLY_").removeprefix("ALL_")
        sizes: Counter[str] = Counter()
        for tensor in self.tensors:
            sizes[tensor.type] += tensor.bytes
        return sizes.most_common(1)[0][0] if sizes else "none"

    @cached_property
    def tensor_bytes(self) -> int:
        return sum(t.bytes for t in self.tensors)

    def tensor(self, name: str) -> Tensor | None:
        return next((t for t in self.tensors if t.name == name), None)

    def per_layer(self, key: str) -> list[int]:
        """A value that is one number for all layers, or a number for each."""
        value, layers = self.get(key), self.block_count
        if not isinstance(value, list):
            return [self.count(key)] * layers
        if len(value) != layers:
            name = f"{self.architecture}.{key}"
            raise HarnessError(
                f"{self.path}: GGUF header has {len(value)} numbers '{name}' for {layers} layers"
            )
        return [self._in_range(key, one) for one in value]


def read_gguf(path: Path) -> GgufModel:
    """Read a model's header and check that the file holds all its tensors.

    Raises:
        HarnessError: no such file, not a GGUF, a damaged header, or a file that ends too early.
    """
    try:
        # Without O_NONBLOCK, open() of a FIFO waits.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                what = "Is a directory" if stat.S_ISDIR(status.st_mode) else "Is not a file"
                raise HarnessError(f"cannot read model {path}: {what}")
            return _read(path, status.st_size, file)
        finally:
            os.close(file)
    except OSError as error:
        raise HarnessError(f"cannot read model {path}: {error.strerror}") from error


def _read(path: Path, size: int, file: int) -> GgufModel:
    if (magic := os.pread(file, len(_MAGIC), 0)) != _MAGIC:
        raise HarnessError(f"{path} is not a GGUF model: it begins with {magic!r}, not b'GGUF'")
    try:
        metadata, tensors = _parse(_Cursor(file, len(_MAGIC)))
    except struct.error as error:
        raise HarnessError(
            f"{path}: the file ends inside its header ({size} bytes): truncated, copy it again"
        ) from error
    except ValueError as error:
        raise HarnessError(f"{path}: damaged GGUF header ({error}), copy it again") from error
    if not isinstance(metadata.get("general.architecture"), str):
        raise HarnessError(f"{path}: GGUF header has no 'general.architecture'; not a language model file")
    # Tensors may not overlap: their sizes are summed too.
    needed = max(max((t.offset + t.bytes for t in tensors), default=0), sum(t.bytes for t in tensors))
    if size < needed:
        raise HarnessError(
            f"{path} is truncated: its tensors need {needed} bytes, the file has {size} "
            f"({needed - size} missing); copy it again"
        )
    model = GgufModel(path, size, metadata, tuple(tensors))
    for key in _MOST:
        if model.get(key) is not None:
            model.per_layer(key)
    return model


def _parse(cursor: "_Cursor") -> tuple[dict[str, Any], list[Tensor]]:
    version = cursor.count(4)
    if version not in (2, 3):
        raise ValueError(f"version {version}, known are 2 and 3")
    tensor_count, key_count = cursor.count(10), cursor.count(10)
    if tensor_count > _MOST_TENSORS or key_count > _MOST_KEYS:
        raise ValueError(
            f"it claims {tensor_count} tensors and {key_count} keys; "
            f"at most {_MOST_TENSORS} and {_MOST_KEYS} are read"
        )
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.count(4))
    infos = [_tensor_info(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment.bit_count() != 1 or not 0 < alignment <= _MOST_ALIGNMENT:
        raise ValueError(f"its alignment is {str(alignment)[:40]}, no power of two up to {_MOST_ALIGNMENT}")
    start = -(-cursor.position // alignment) * alignment
    return metadata, [Tensor(n, t.name, s, _tensor_bytes(n, t, s), start + o) for n, t, s, o in infos]


def _tensor_info(cursor: "_Cursor") -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
    name = cursor.string(_MOST_NAME_BYTES)
    dimensions = cursor.count(4)
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"tensor {name} has {dimensions} dimensions")
    shape = tuple(cursor.count(10) for _ in range(dimensions))
    number = cursor.count(4)
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise ValueError(f"tensor {name} has the unknown type {number}") from None
    return name, kind, shape, cursor.count(10)


def _tensor_bytes(name: str, kind: GGMLQuantizationType, shape: tuple[int, ...]) -> int:
    block, block_bytes = (int(n) for n in GGML_QUANT_SIZES[kind])
    if not shape or shape[0] % block:
        raise ValueError(f"tensor {name}: rows of {shape[:1]} elements are not whole {kind.name} blocks")
    return prod(shape) // block * block_bytes


class _Cursor:
    """Reads values of a file one after the other, a window of it at a time.

    A read past the file's end is a struct.error, one past a bound a ValueError.
    """

    def __init__(self, file: int, position: int) -> None:
        self._file = file
        self._window = b""
        self._start = 0
        """Of the window, in the file."""
        self._values = 0
        self._text_bytes = 0
        self.position = position

    def _at(self, size: int) -> int:
        """Index of the position in the window, which has ``size`` bytes from there unless the file ends."""
        index = self.position - self._start
        if not 0 <= index <= len(self._window) - size:
            if self.position + size > _MOST_HEADER_BYTES:
                raise ValueError(f"it is longer than {_MOST_HEADER_BYTES} bytes")
            self._window = os.pread(self._file, max(size, _WINDOW), self.position)
            self._start, index = self.position, 0
        return index

    def count(self, kind: int) -> int:
        return int(self.scalar(kind))

    def scalar(self, kind: int) -> Any:
        layout = _layout(kind)
        index = self._at(layout.size)
        (value,) = layout.unpack_from(self._window, index)
        self.position += layout.size
        return value

    def string(self, most: int = _MOST_TEXT_BYTES) -> str:
        length = self.count(10)
        self._text_bytes += length
        if length > most or self._text_bytes > _MOST_TEXT_BYTES:
            raise ValueError(
                f"a string of {length} bytes; at most {most}, and {_MOST_TEXT_BYTES} in all, are read"
            )
        index = self._at(length)
        text = self._window[index : index + length]
        if len(text) < length:
            raise struct.error("string ends past the file")
        self.position += length
        return text.decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        return self.array() if kind == _ARRAY else self.scalar(kind)

    def array(self) -> Any:
        kind, length = self.count(4), self.count(10)
        if kind == _ARRAY:
            raise ValueError("an array of arrays")
        if length <= _KEPT_ARRAY:
            self._count_values(length * _KEPT_COST)
            return [self.value(kind) for _ in range(length)]
        if kind == _STRING:
            self._count_values(length)
            self._skip_strings(length)
        else:
            self.position += _layout(kind).size * length
        return SkippedArray(length)

    def _skip_strings(self, count: int) -> None:
        layout = _SCALARS[10]
        for _ in range(count):
            index = self.position - self._start
            if index > len(self._window) - 8:
                index = self._at(8)
            self.position += 8 + layout.unpack_from(self._window, index)[0]

    def _count_values(self, length: int) -> None:
        self._values += length
        if self._values > _MOST_VALUES:
            raise ValueError(f"{self._values} values in arrays; at most {_MOST_VALUES} are read")


def _layout(kind: int) -> struct.Struct:
    layout = _SCALARS.get(kind)
    if layout is None:
        raise ValueError(f"unknown value type {kind}")
    return layout
