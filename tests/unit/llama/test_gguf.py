"""Reading a GGUF's facts from its header, and refusing files that are not whole."""

import struct
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter
from harness.errors import HarnessError
from harness.llama.gguf import GgufModel, SkippedArray, read_gguf
from harness.llama.synthetic.writer import synthesise


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> GgufModel:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    synthesise("tiny", "Q4_0", path)
    return read_gguf(path)


def test_facts_are_those_of_the_shape(tiny: GgufModel) -> None:
    assert (tiny.architecture, tiny.quantisation, tiny.block_count) == ("llama", "Q4_0", 4)
    assert (tiny.embedding_length, tiny.feed_forward_length, tiny.vocab_size) == (256, 512, 1024)
    assert (tiny.heads, tiny.kv_heads, tiny.key_length) == ([4] * 4, [2] * 4, 64)
    assert tiny.synthetic


def test_every_tensor_is_as_the_reference_reader_sees_it(tiny: GgufModel) -> None:
    reference = GGUFReader(tiny.path)
    assert [
        (t.name, t.tensor_type.name, tuple(t.shape), t.n_bytes, t.data_offset) for t in reference.tensors
    ] == [(t.name, t.type, t.shape, t.bytes, t.offset) for t in tiny.tensors]


def test_tensors_know_their_layer(tiny: GgufModel) -> None:
    layers = {t.name: t.layer for t in tiny.tensors}
    assert layers["blk.3.ffn_down.weight"] == 3
    assert layers["output.weight"] is None
    assert sum(t.layer is not None for t in tiny.tensors) == 4 * 9


def test_large_vocabulary_is_counted_and_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_token_list([f"token{n}" for n in range(128_256)])
    writer.add_token_merges([f"a{n} b" for n in range(280_000)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    metadata = read_gguf(path).metadata
    assert metadata["tokenizer.ggml.tokens"] == SkippedArray(128_256)
    assert metadata["tokenizer.ggml.merges"] == SkippedArray(280_000)


def key(name: str, value: bytes) -> bytes:
    """A header without tensors and with one key."""
    return b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(name)) + name.encode() + value


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a GGUF model"),
        (b"#!/bin/sh\nexit 0\n", "is not a GGUF model"),
        (b"GGUF", "ends inside its header"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 5), "ends inside its header"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "it claims 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "no 'general.architecture'"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "unknown value type 77"),
        (key("general.alignment", struct.pack("<II", 4, 0)), "damaged GGUF header"),
        (key("general.alignment", struct.pack("<IIQ", 9, 4, 0)), "damaged GGUF header"),
        (key("k", struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 2000), "damaged GGUF header"),
    ],
)
def test_file_that_is_no_whole_gguf_is_refused_in_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(HarnessError) as refused:
        read_gguf(path)
    assert says in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("cut", [1, 10_000])
def test_file_shorter_than_its_tensors_says_how_much_is_missing(
    tiny: GgufModel, tmp_path: Path, cut: int
) -> None:
    last = max(t.offset + t.bytes for t in tiny.tensors)
    path = tmp_path / "short.gguf"
    path.write_bytes(tiny.path.read_bytes()[: last - cut])
    with pytest.raises(HarnessError, match=rf"truncated: its tensors need {last} bytes.*\({cut} missing\)"):
        read_gguf(path)


def test_header_cut_anywhere_is_refused(tiny: GgufModel, tmp_path: Path) -> None:
    whole = tiny.path.read_bytes()
    start = min(t.offset for t in tiny.tensors)
    path = tmp_path / "cut.gguf"
    for length in range(0, start, 997):
        path.write_bytes(whole[:length])
        with pytest.raises(HarnessError):
            read_gguf(path)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"none\.gguf: No such file"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(HarnessError, match="Is a directory"):
        read_gguf(tmp_path)
