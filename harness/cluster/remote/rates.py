"""Runs on the head node: how fast it reads a file cold, and how fast llama.cpp's hash goes over it.

Standard library alone, Python 3.8 or later. Prints JSON: bytes per second of each; null without the tool.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

BLOCK = 4 << 20


def read_cold(path: str, offset: int, size: int) -> float:
    """Bytes per second of a part that is in no page cache; it is dropped again."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, offset, size, os.POSIX_FADV_DONTNEED)
        begun = time.monotonic()
        done = 0
        while done < size and (block := os.pread(file, min(BLOCK, size - done), offset + done)):
            done += len(block)
        return done / (time.monotonic() - begun)
    finally:
        os.posix_fadvise(file, offset, size, os.POSIX_FADV_DONTNEED)
        os.close(file)


def hash_warm(tool: str, path: str, offset: int, size: int) -> float | None:
    """Bytes per second of the tool on one processor, its part read before."""
    with pathlib.Path(path).open("rb") as file:
        file.seek(offset)
        file.read(size)
    begun = time.monotonic()
    try:
        text = f"{offset} {size}\n"
        subprocess.run([tool, "hash", path], input=text.encode(), stdout=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return size / (time.monotonic() - begun)


def main(argument: dict[str, Any]) -> None:
    """Measure a part in the middle of the file."""
    path = argument["path"]
    whole = pathlib.Path(path).stat().st_size
    size = min(int(argument["size"]), whole)
    offset = (whole - size) // 2 // 4096 * 4096
    found = {"disk": read_cold(path, offset, size), "hash": hash_warm(argument["tool"], path, offset, size)}
    read_cold(path, offset, size)
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
