"""Runs on a node as root: works on a model's file, and prints the answer as JSON. Python 3.8 alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

from harness.cluster.remote.common import output

PART = 1 << 20
BLOCK = 4 << 20


def fingerprint(argument: dict[str, Any]) -> dict[str, str] | None:
    """The first of some paths that is a file of the given size, and a hash of its two ends.

    The first MiB holds the header with all tensor names, the last one the last weights.
    """
    size = int(argument["size"])
    for name in argument["paths"]:
        path = pathlib.Path(name)
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_size == size:
                with path.open("rb") as file:
                    digest = hashlib.sha256(file.read(PART))
                    file.seek(max(0, size - PART))
                    digest.update(file.read(PART))
                return {"path": name, "fingerprint": digest.hexdigest()}
    return None


def make_cold(argument: dict[str, Any]) -> dict[str, Any]:
    """Empty the RPC tensor cache and drop files from the page cache.

    /proc/sys cannot be written in a lab node, so pages go by posix_fadvise, which works even where others
    have the file open (pages that are mapped stay).
    """
    result: dict[str, Any] = {}
    if argument["rpc_cache"]:
        result["rpc_cache_removed"] = empty(argument["rpc_cache"])
    result["resident_before"] = {path: resident(path) for path in argument["drop"]}
    for path in argument["drop"]:
        with pathlib.Path(path).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    result["resident_after"] = {path: resident(path) for path in argument["drop"]}
    return result


def empty(folder: str) -> dict[str, int]:
    """Delete every file under a folder; how many there were and their bytes."""
    files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file() and not path.is_symlink()]
    sizes = [path.stat().st_size for path in files]
    for path in files:
        path.unlink()
    return {"files": len(files), "bytes": sum(sizes)}


def resident(path: str) -> int | None:
    """Bytes of a file in the page cache; None without fincore."""
    size = output("fincore", "--bytes", "--noheadings", "--output", "RES", path).strip()
    return int(size) if size.isdigit() else None


def measure_rates(argument: dict[str, Any]) -> dict[str, float | None]:
    """Bytes per second of a cold read and of llama.cpp's hash, over a part in the middle of the file."""
    path = argument["path"]
    whole = pathlib.Path(path).stat().st_size
    size = min(int(argument["size"]), whole)
    offset = (whole - size) // 2 // 4096 * 4096
    rates = {"disk": read_cold(path, offset, size), "hash": hash_warm(argument["tool"], path, offset, size)}
    read_cold(path, offset, size)
    return rates


def read_cold(path: str, offset: int, size: int) -> float:
    """Bytes per second of reading a part from the disk; the page cache loses it before and after."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, offset, size, os.POSIX_FADV_DONTNEED)
        started = time.monotonic()
        done = 0
        while done < size and (block := os.pread(file, min(BLOCK, size - done), offset + done)):
            done += len(block)
        return done / (time.monotonic() - started)
    finally:
        os.posix_fadvise(file, offset, size, os.POSIX_FADV_DONTNEED)
        os.close(file)


def hash_warm(tool: str, path: str, offset: int, size: int) -> float | None:
    """Bytes per second of hashing a part in the page cache on one processor; None without the tool."""
    with pathlib.Path(path).open("rb") as file:
        file.seek(offset)
        file.read(size)
    started = time.monotonic()
    try:
        text = f"{offset} {size}\n"
        subprocess.run([tool, "hash", path], input=text.encode(), stdout=subprocess.DEVNULL, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return size / (time.monotonic() - started)


ACTIONS = {"fingerprint": fingerprint, "make_cold": make_cold, "measure_rates": measure_rates}

if __name__ == "__main__":
    ARGUMENT = json.loads(sys.argv[1])
    print(json.dumps(ACTIONS[ARGUMENT["do"]](ARGUMENT)))
