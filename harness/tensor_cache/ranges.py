"""Writes parts of a model's file to standard output, each with its size before it (8 bytes, little-endian).

``python -m harness.tensor_cache.ranges FILE < ranges`` does what ``llama-tensor-cache read`` does on a node,
for the machine that has no build. A range is a line "offset size".
"""

import os
import sys
from pathlib import Path


def send(file: Path, ranges: list[tuple[int, int]], out: int) -> None:
    """Write the ranges to the descriptor ``out``, in order.

    Raises:
        OSError: the file cannot be read, or the reader has gone.
        ValueError: a range ends behind the file.
    """
    with file.open("rb") as source:
        length = os.fstat(source.fileno()).st_size
        for offset, size in ranges:
            if offset + size > length:
                raise ValueError(f"range {offset} {size} ends behind the {length} bytes of {file}")
            os.write(out, size.to_bytes(8, "little"))
            done = 0
            while done < size:
                done += os.sendfile(out, source.fileno(), offset + done, min(size - done, 1 << 20))


if __name__ == "__main__":
    lines = [line.split() for line in sys.stdin.read().splitlines()]
    send(Path(sys.argv[1]), [(int(offset), int(size)) for offset, size in lines], sys.stdout.fileno())
