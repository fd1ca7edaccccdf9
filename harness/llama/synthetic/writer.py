"""Synthetic models: a real model's shapes and quantisation with random weights.

Such a file costs the same memory, transfer and arithmetic as the real one; only its answers mean nothing.
"""

import errno
import fcntl
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, RopeScalingType

from harness.errors import HarnessError
from harness.llama.gguf import read_gguf
from harness.llama.synthetic import content
from harness.llama.synthetic.shapes import (
    BASE_TYPES,
    SHAPES,
    PlannedTensor,
    Shape,
    find_shape,
    find_type,
    plan_tensors,
)
from harness.settings import cache_dir

_ALIGNMENT = 32
_SPARE_BYTES = 256 << 20
"""Disk space that is left to others."""


@dataclass(frozen=True)
class Written:
    """What ``synthesise`` leaves: a complete file, and what it took."""

    path: Path
    file_bytes: int
    seconds: float
    """0 where the same file stood already."""


def default_path(shape: str, kind: str) -> Path:
    """Where a synthetic model lives in the cache: ``<shape>-<type>.gguf``, lower case."""
    return cache_dir() / "models" / f"{shape}-{kind}.gguf".lower()


def parse_stem(stem: str) -> tuple[str, str] | None:
    """Shape and type of a name in the cache: ``13b-q4_0``; None where it is no such name."""
    shape, _, kind = stem.partition("-")
    return (shape, kind.upper()) if shape in SHAPES and kind.upper() in BASE_TYPES else None


def synthesise(
    shape_name: str,
    type_name: str,
    out: Path | None = None,
    seed: int = 0,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write a synthetic model, or find that the same one is already there.

    Args:
        shape_name: one of ``SHAPES``, and ``type_name`` one of ``BASE_TYPES``.
        out: the file; the cache's own name by default.
        seed: the same seed gives the same bytes.
        force: write even where there is a file.
        progress: called with bytes written and bytes in all.

    Raises:
        HarnessError: unknown shape or type, another file in the way, too little disk space, no permission.
    """
    shape, (base, file_type) = find_shape(shape_name), find_type(type_name)
    path = out or default_path(shape.name, type_name)
    if path.exists() and not force:
        return _same_model(path, shape, type_name.upper(), seed)
    tensors = list(plan_tensors(shape, base))
    total = _data_bytes(tensors)
    _check_space(path, total)
    began = time.monotonic()
    try:
        with _replacing(path) as temporary:
            start = _write_header(temporary, shape, type_name.upper(), file_type, seed, tensors)
            with temporary.open("r+b", buffering=0) as file:
                file.seek(start)
                _reserve(file, start + total)
                _write_tensors(file, tensors, seed, total, progress or (lambda done, total: None))
            read_gguf(temporary)
    except OSError as error:
        raise HarnessError(f"cannot write {path}: {error.strerror or error}; name another --out") from error
    return Written(path, path.stat().st_size, time.monotonic() - began)


def synthetic_bytes(shape_name: str, type_name: str) -> int:
    """Bytes of a synthetic model's tensors: its file without the header, which is some MB."""
    return _data_bytes(list(plan_tensors(find_shape(shape_name), find_type(type_name)[0])))


def _data_bytes(tensors: list[PlannedTensor]) -> int:
    return sum(_padded(tensor_bytes(tensor)) for tensor in tensors)


def tensor_bytes(tensor: PlannedTensor) -> int:
    """Bytes of a tensor's data."""
    block, block_bytes = (int(n) for n in GGML_QUANT_SIZES[tensor.type])
    return math.prod(tensor.shape) // block * block_bytes


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _same_model(path: Path, shape: Shape, kind: str, seed: int) -> Written:
    model = read_gguf(path)
    if not model.synthetic:
        raise HarnessError(f"{path} is there and not made by 'harness model synth'; name another --out")
    wanted = {"shape": shape.name, "type": kind, "seed": seed}
    values = {key: model.metadata.get(f"llama_harness.{key}") for key in wanted}
    if values != wanted:
        raise HarnessError(f"{path} is there with {values}, not {wanted}; add --force or name another --out")
    return Written(path, model.file_bytes, 0.0)


def _check_space(path: Path, needed: int) -> None:
    existing = next(p for p in (path.parent, *path.parent.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + _SPARE_BYTES:
        raise HarnessError(
            f"{path} needs {needed / 1e9:.1f} GB and {existing} has {free / 1e9:.1f} GB free; "
            "free some space or name another --out"
        )


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its name when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("ab") as holder:
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HarnessError(f"{path} is being written by another process; wait for it") from None
        with ExitStack() as unfinished:
            unfinished.callback(temporary.unlink, missing_ok=True)
            yield temporary
            temporary.replace(path)
            unfinished.pop_all()  # by now the name may be another writer's


def _reserve(file: IO[bytes], size: int) -> None:
    """Claim the disk space now, so that a full disk is met before the work, not after."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise HarnessError(f"no space for {size / 1e9:.1f} GB at {file.name}; free some") from error
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _write_header(
    path: Path, shape: Shape, kind: str, file_type: LlamaFileType, seed: int, tensors: list[PlannedTensor]
) -> int:
    """Write everything before the tensor data; gives where the data begins."""
    writer = GGUFWriter(None, "llama")
    writer.add_name(f"synthetic {shape.name} {kind} (the shape of {shape.like}, random weights)")
    writer.add_file_type(file_type)
    writer.add_bool("llama_harness.synthetic", True)
    writer.add_string("llama_harness.shape", shape.name)
    writer.add_string("llama_harness.type", kind)
    writer.add_uint32("llama_harness.seed", seed)
    _add_dimensions(writer, shape)
    _add_vocabulary(writer, shape.vocabulary)
    for t in tensors:
        writer.add_tensor_info(t.name, t.shape, np.dtype(np.float32), tensor_bytes(t), raw_dtype=t.type)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        return _padded(writer.fout[0].tell())
    finally:
        writer.close()


def _add_dimensions(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(shape.context)
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.embedding)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_scaling_type(RopeScalingType.NONE)
    writer.add_vocab_size(shape.vocabulary)


def _add_vocabulary(writer: GGUFWriter, size: int) -> None:
    texts, scores, types = content.make_vocabulary(size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(content.BEGIN)
    writer.add_eos_token_id(content.END)
    writer.add_unk_token_id(content.UNKNOWN)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(content.CHAT_TEMPLATE)


def _write_tensors(
    file: IO[bytes], tensors: list[PlannedTensor], seed: int, total: int, progress: Callable[[int, int], None]
) -> None:
    rng = np.random.default_rng(seed)
    pools: dict[GGMLQuantizationType, content.Bytes] = {}
    done = 0
    for tensor in tensors:
        size = tensor_bytes(tensor)
        for part in _content(tensor, size, pools, rng):
            _write_all(file, part.data)
            done += len(part)
        _write_all(file, memoryview(bytes(_padded(size) - size)))
        progress(min(done, total), total)
    progress(total, total)


def _content(
    tensor: PlannedTensor,
    size: int,
    pools: dict[GGMLQuantizationType, content.Bytes],
    rng: np.random.Generator,
) -> Iterator[content.Bytes]:
    if tensor.type is GGMLQuantizationType.F32:
        # Norms near one, and different from each other; rotary factors of exactly one.
        spread = 0.0 if tensor.name.startswith("rope") else 0.02
        values = 1 + spread * rng.standard_normal(tensor.shape, dtype=np.float32)
        yield values.astype("<f4").view(np.uint8)
        return
    if tensor.type not in pools:
        pools[tensor.type] = content.random_pool(tensor.type, rng)
    yield from content.stream(pools[tensor.type], size, int(GGML_QUANT_SIZES[tensor.type][1]), rng)


def _write_all(file: IO[bytes], data: memoryview) -> None:
    while len(data):
        data = data[file.write(data) :]
