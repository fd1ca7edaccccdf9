"""Reading a GGUF's facts from its header, and refusing files that are not whole."""

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
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


def entry(name: str, kind: int, value: bytes) -> bytes:
    """One key of a header with its value."""
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def text(content: str) -> bytes:
    return struct.pack("<Q", len(content.encode())) + content.encode()


def header(*entries: bytes, tensors: Sequence[bytes] = ()) -> bytes:
    """A whole header; the data of its tensors would follow."""
    keys = [entry("general.architecture", 8, text("llama")), *entries]
    return b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join([*keys, *tensors])


def tensor(name: str, *shape: int, kind: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


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
        (key("k", struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 2000), "an array of arrays"),
    ],
    ids=range(11),
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


def u32(name: str, value: int) -> bytes:
    return entry(name, 4, struct.pack("<I", value))


STRINGS = struct.pack("<I", 8)
"""The type of an array's elements."""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (header(u32("llama.block_count", 0xFFFFFFF0)), "llama.block_count = 4294967280; known are 1 to 4096"),
        (header(u32("llama.block_count", 9), u32("llama.attention.head_count", 10**9)), "head_count = 10"),
        (
            header(u32("llama.block_count", 9), entry("llama.embedding_length", 6, b"....")),
            "no number 'llama.emb",
        ),
        (
            header(
                u32("llama.block_count", 9),
                entry("llama.attention.head_count", 9, struct.pack("<IQ2I", 4, 2, 1, 1)),
            ),
            "2 numbers 'llama.attention.head_count' for 9 layers",
        ),
        (header(entry("k", 8, struct.pack("<Q", 1 << 30))), "a string of 1073741824 bytes"),
        (header(entry("k", 9, STRINGS + struct.pack("<Q", 1 << 28))), "268435456 values in arrays"),
        (
            header(*[entry(f"k{n}", 9, struct.pack("<IQ", 0, 1000) + bytes(1000)) for n in range(63)]),
            "in arrays",
        ),
        (
            header(entry("k", 9, struct.pack("<IQ", 0, 1 << 29)), u32("l", 1)),
            "longer than 268435456",
        ),
        (header(u32("llama.block_count", 0)), "llama.block_count = 0; known are 1 to 4096"),
        (header(u32("general.alignment", 48)), "its alignment is 48"),
        (header(u32("general.alignment", 1 << 31)), "its alignment is 2147483648"),
        (header(tensors=[b""] * 65_537), "it claims 65537 tensors"),
        (header(tensors=[tensor("t", *[1] * 5)]), "tensor t has 5 dimensions"),
        (header(tensors=[tensor("t" * 65, 1)]), "a string of 65 bytes"),
        (header(tensors=[tensor("a", 999), tensor("b", 999)]), "truncated: its tensors need 7992 bytes"),
        (header(tensors=[tensor("t", 2**62, 2**62)]), "truncated"),
    ],
    ids=range(16),
)
def test_number_that_would_cost_memory_or_time_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    """Each file is sparse: its size costs whoever makes it nothing."""
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    if "truncated" not in says:
        os.truncate(path, 1 << 40)
    with pytest.raises(HarnessError) as refused:
        read_gguf(path)
    assert says in str(refused.value)
    assert len(str(refused.value)) < 1000


def most_values() -> bytes:
    return header(entry("k", 9, STRINGS + struct.pack("<Q", 4_000_000)))


def most_kept() -> bytes:
    return header(*(entry(f"k{n}", 9, struct.pack("<IQ1024I", 4, 1024, *range(1024))) for n in range(61)))


def most_text() -> bytes:
    return header(entry("k", 8, text("\U0001f600" * ((16 << 18) - 100))))


def most_tensors() -> bytes:
    return header(tensors=[tensor(f"blk.{n}.{'t' * 50}", 1, 1, 1, 1) for n in range(65_536)])


_READS = """
import re, sys, time
from pathlib import Path
from harness.llama.gguf import read_gguf
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before, began = peak(), time.process_time()
read_gguf(Path(sys.argv[1]))
print((peak() - before) // 1024, time.process_time() - began)
"""


@pytest.mark.parametrize("make", [most_values, most_kept, most_text, most_tensors])
def test_largest_header_that_is_read_takes_little_memory(
    tmp_path: Path, make: Callable[[], bytes], record_property: Callable[[str, object], None]
) -> None:
    path = tmp_path / "largest.gguf"
    path.write_bytes(make())
    os.truncate(path, 1 << 30)
    argv = [sys.executable, "-c", _READS, str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    mib, seconds = done.stdout.split()
    record_property("seconds", seconds)
    assert int(mib) < 100


def test_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(HarnessError, match=r"pipe\.gguf: Is not a file"):
        read_gguf(tmp_path / "pipe.gguf")
