"""Facts of a GGUF file, from its header alone: shapes, types and where each tensor lies.

``gguf.GGUFReader`` builds an array per vocabulary entry (9 s for the 128,256 tokens of Llama 3), so the
header is walked here and long arrays are stepped over; block sizes come from the ``gguf`` package.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

import mmap
import re
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
_MOST_ENTRIES = 1_000_000
"""More keys or tensors than this is a damaged header."""
_SCALARS = dict(enumerate(["<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?"])) | {10: "<Q", 11: "<q", 12: "<d"}
"""Layouts by the number of a value's type; 4 is uint32, 10 uint64."""
_STRING, _ARRAY = 8, 9
_DAMAGED = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError)
"""Errors that wrong numbers and types raise: an alignment of 0, arrays in arrays in arrays."""
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
        value = self.get(key)
        if not isinstance(value, int):
            raise HarnessError(f"{self.path}: GGUF header has no number '{self.architecture}.{key}'")
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
        return int(self.get(key) or self.embedding_length // max(self.heads))

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
        value = self.get(key)
        return [int(v) for v in value] if isinstance(value, list) else [self.count(key)] * self.block_count


def read_gguf(path: Path) -> GgufModel:
    """Read a model's header and check that the file holds all its tensors.

    Raises:
        HarnessError: no such file, not a GGUF, a damaged header, or a file that ends too early.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            head = file.read(8)
            if head[:4] != _MAGIC:
                raise HarnessError(f"{path} is not a GGUF model: it begins with {head[:4]!r}, not b'GGUF'")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                return _read(path, size, view)
    except OSError as error:
        raise HarnessError(f"cannot read model {path}: {error.strerror}") from error


def _read(path: Path, size: int, view: mmap.mmap) -> GgufModel:
    try:
        metadata, tensors = _parse(view)
    except struct.error as error:
        raise HarnessError(
            f"{path}: the file ends inside its header ({size} bytes): truncated, copy it again"
        ) from error
    except _DAMAGED as error:
        raise HarnessError(f"{path}: damaged GGUF header ({error}), copy it again") from error
    if "general.architecture" not in metadata:
        raise HarnessError(f"{path}: GGUF header has no 'general.architecture'; not a language model file")
    needed = max((t.offset + t.bytes for t in tensors), default=0)
    if size < needed:
        raise HarnessError(
            f"{path} is truncated: its tensors need {needed} bytes, the file has {size} "
            f"({needed - size} missing); copy it again"
        )
    return GgufModel(path, size, metadata, tuple(tensors))


def _parse(view: mmap.mmap) -> tuple[dict[str, Any], list[Tensor]]:
    cursor = _Cursor(view, 4)
    version = cursor.count(4)
    if version not in (2, 3):
        raise ValueError(f"version {version}, known are 2 and 3")
    tensor_count, key_count = cursor.count(10), cursor.count(10)
    if max(tensor_count, key_count) > _MOST_ENTRIES:
        raise ValueError(f"it claims {tensor_count} tensors and {key_count} keys")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.count(4))
    infos = [_tensor_info(cursor) for _ in range(tensor_count)]
    alignment = int(metadata.get("general.alignment", _DEFAULT_ALIGNMENT))
    start = -(-cursor.position // alignment) * alignment
    return metadata, [Tensor(n, t.name, s, _tensor_bytes(n, t, s), start + o) for n, t, s, o in infos]


def _tensor_info(cursor: "_Cursor") -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
    name = cursor.string()
    shape = tuple(cursor.count(10) for _ in range(cursor.count(4)))
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
    """Reads values one after the other; a read past the end is a struct.error."""

    def __init__(self, view: mmap.mmap, position: int) -> None:
        self.view = view
        self.position = position

    def count(self, kind: int) -> int:
        return int(self.scalar(kind))

    def scalar(self, kind: int) -> Any:
        layout = _SCALARS.get(kind)
        if layout is None:
            raise ValueError(f"unknown value type {kind}")
        (value,) = struct.unpack_from(layout, self.view, self.position)
        self.position += struct.calcsize(layout)
        return value

    def string(self) -> str:
        length = self.count(10)
        end = self.position + length
        if end > len(self.view):
            raise struct.error("string ends past the file")
        text: bytes = self.view[self.position : end]
        self.position = end
        return text.decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        return self.array() if kind == _ARRAY else self.scalar(kind)

    def array(self) -> Any:
        kind, length = self.count(4), self.count(10)
        if length <= _KEPT_ARRAY:
            return [self.value(kind) for _ in range(length)]
        if kind == _ARRAY:
            raise ValueError("a long array of arrays")
        if kind == _STRING:
            unpack, view, position = struct.Struct("<Q").unpack_from, self.view, self.position
            for _ in range(length):
                position += 8 + unpack(view, position)[0]
            self.position = position
        else:
            self.position += struct.calcsize(_SCALARS[kind]) * length
        return SkippedArray(length)
