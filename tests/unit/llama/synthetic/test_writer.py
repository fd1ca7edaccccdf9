"""Synthetic models: real shapes, sane weights, no two tensors alike, never half a file."""

import hashlib
import math
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from harness.errors import HarnessError
from harness.llama.gguf import read_gguf
from harness.llama.synthetic import content
from harness.llama.synthetic import writer as synth
from harness.llama.synthetic.content import WEIGHT_STD, make_vocabulary, random_pool, stream
from harness.llama.synthetic.shapes import BASE_TYPES, SHAPES, plan_tensors
from harness.llama.synthetic.writer import parse_stem, synthesise, tensor_bytes


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAMA_HARNESS_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("shape", "kind", "parameters", "gigabytes"),
    [
        ("13b", "Q4_0", 13.02e9, 7.37),
        ("13b", "Q4_K_M", 13.02e9, 7.87),
        ("70b", "Q4_K_M", 70.55e9, 42.5),
        ("70b", "TQ1_0", 70.55e9, 15.9),
        ("1b", "Q8_0", 1.236e9, 1.31),
    ],
)
def test_shapes_have_the_real_models_size(shape: str, kind: str, parameters: float, gigabytes: float) -> None:
    tensors = list(plan_tensors(SHAPES[shape], BASE_TYPES[kind][0]))
    assert sum(math.prod(t.shape) for t in tensors) == pytest.approx(parameters, rel=0.002)
    assert sum(tensor_bytes(t) for t in tensors) / 1e9 == pytest.approx(gigabytes, rel=0.01)


@pytest.mark.parametrize(
    ("shape", "kind", "embedding", "output"),
    [
        ("13b", "Q4_0", "Q4_0", "Q6_K"),
        ("70b", "TQ1_0", "Q4_K", "Q6_K"),
        ("13b", "Q8_0", "Q8_0", "Q8_0"),
        ("1b", "Q4_0", "Q6_K", None),
    ],
)
def test_embedding_and_output_are_typed_as_llama_quantize_does(
    shape: str, kind: str, embedding: str, output: str | None
) -> None:
    types = {t.name: t.type.name for t in plan_tensors(SHAPES[shape], BASE_TYPES[kind][0])}
    assert types["token_embd.weight"] == embedding
    assert types.get("output.weight") == output
    assert types["blk.0.ffn_up.weight"] == kind


@pytest.mark.parametrize("kind", BASE_TYPES)
def test_weights_are_finite_and_of_trained_size(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    synthesise("tiny", kind, path)
    tensors = {t.name: t for t in GGUFReader(path).tensors}
    for tensor in tensors.values():
        weights = dequantize(tensor.data, tensor.tensor_type)
        assert np.isfinite(weights).all(), tensor.name
        if tensor.name.endswith("norm.weight"):
            assert weights.mean() == pytest.approx(1, abs=0.05)
        else:
            assert weights.std() == pytest.approx(WEIGHT_STD, rel=0.05), tensor.name
            assert abs(weights.mean()) < WEIGHT_STD / 2, tensor.name


def test_no_two_tensors_have_the_same_content(tmp_path: Path) -> None:
    """The RPC tensor cache goes by hash: equal tensors would be sent once."""
    path = tmp_path / "m.gguf"
    synthesise("tiny", "Q4_0", path)
    tensors = GGUFReader(path).tensors
    assert len({hashlib.sha256(t.data.tobytes()).digest() for t in tensors}) == len(tensors)


def test_tensor_larger_than_the_pool_is_made_of_whole_blocks() -> None:
    rng = np.random.default_rng(1)
    kind = BASE_TYPES["Q4_0"][0]
    size = GGML_QUANT_SIZES[kind][1]
    pool = random_pool(kind, rng, 1 << 16)
    data = np.concatenate(list(stream(pool, 100_000 * size, size, rng)))
    assert len(data) == 100_000 * size
    scales = data.reshape(-1, size)[:, :2].copy().view("<f2")
    assert len(np.unique(scales)) == 1


def test_same_seed_gives_the_same_bytes_and_another_seed_other_weights(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.gguf" for n in range(3)]
    for path, seed in zip(paths, (7, 7, 8), strict=True):
        synthesise("tiny", "Q8_0", path, seed=seed)
    first, same, other = (p.read_bytes() for p in paths)
    assert first == same
    assert first != other


def test_file_says_that_it_is_synthetic(tmp_path: Path) -> None:
    path = synthesise("tiny", "Q8_0", seed=3).path
    assert path == tmp_path / "models" / "tiny-q8_0.gguf"
    model = read_gguf(path)
    assert model.synthetic
    assert model.name.startswith("synthetic tiny Q8_0")
    assert model.metadata["llama_harness.seed"] == 3


def test_second_time_the_file_is_kept(tmp_path: Path) -> None:
    first = synthesise("tiny", "Q4_0")
    inode = first.path.stat().st_ino
    assert synthesise("tiny", "Q4_0").seconds == 0
    assert first.path.stat().st_ino == inode
    with pytest.raises(HarnessError, match=r"'seed': 0.*'seed': 1.*--force"):
        synthesise("tiny", "Q4_0", seed=1)
    assert synthesise("tiny", "Q4_0", seed=1, force=True).path.stat().st_ino != inode


def test_file_of_someone_else_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"not yours")
    with pytest.raises(HarnessError, match="not a GGUF"):
        synthesise("tiny", "Q4_0", path)
    assert path.read_bytes() == b"not yours"


def test_failure_leaves_neither_file_nor_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesise("tiny", "Q4_0", tmp_path / "out" / "m.gguf", progress=interrupted)
    assert list((tmp_path / "out").iterdir()) == []


def test_full_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(HarnessError, match=r"needs 7\.4 GB and .* has 0\.0 GB free"):
        synthesise("13b", "Q4_0", tmp_path / "out" / "m.gguf")
    assert not (tmp_path / "out").exists()


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with synth._replacing(path), pytest.raises(HarnessError, match="being written by another process"):
        synthesise("tiny", "Q4_0", path, force=True)


def test_unknown_shape_and_type_name_what_is_known() -> None:
    with pytest.raises(HarnessError, match="no shape '7b'; known shapes: 13b, 70b"):
        synthesise("7b", "Q4_0")
    with pytest.raises(HarnessError, match="no quantisation 'Q9'; known: F16, Q4_0"):
        synthesise("13b", "Q9")


@pytest.mark.parametrize(
    ("stem", "made"),
    [("13b-q4_0", ("13b", "Q4_0")), ("70b-tq1_0", ("70b", "TQ1_0")), ("smollm2", None), ("13b-q9", None)],
)
def test_cache_names_stand_for_shape_and_type(stem: str, made: tuple[str, str] | None) -> None:
    assert parse_stem(stem) == made


@pytest.mark.parametrize("size", [1024, 32016, 128256])
def test_vocabulary_has_distinct_tokens_and_all_bytes(size: int) -> None:
    texts, scores, types = make_vocabulary(size)
    assert len(texts) == len(set(texts)) == len(scores) == len(types) == size
    assert [types[texts.index(f"<0x{b:02X}>")] for b in (0, 10, 255)] == [6, 6, 6]
    assert types[content.END] == 3


def test_words_can_be_merged_letter_by_letter() -> None:
    texts = set(make_vocabulary(32016)[0])
    assert all("▁computer"[:n] in texts for n in range(1, 10))


def test_memory_stays_constant(tmp_path: Path) -> None:
    """160 MB of tensors pass through slices of a pool of at most 32 MiB each."""
    path = tmp_path / "big.gguf"
    with path.open("w+b", buffering=0) as file:
        planned = [t for t in plan_tensors(SHAPES["1b"], BASE_TYPES["Q8_0"][0]) if "blk.0." in t.name] * 2
        longest = 0

        class Watch:
            def write(self, data: memoryview) -> int:
                nonlocal longest
                longest = max(longest, len(data))
                return os.write(file.fileno(), data)

        synth._write_tensors(Watch(), planned, 0, 1, lambda done, total: None)  # type: ignore[arg-type]
        assert longest <= 4 << 20
        assert file.tell() > 120e6
