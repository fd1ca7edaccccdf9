"""Runs on a node: works on a model's file or a tensor cache, and prints the answer as JSON. Python 3.8 alone.

It runs as the service that owns the file or names it. ``drop_pages`` runs as root, because only root can see
what is in the page cache; it opens the file as that service.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import stat
import subprocess
import sys
import time
from typing import Any

from harness.cluster.remote.common import output

PART = 1 << 20
BLOCK = 4 << 20
HOLD_OPEN = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
print(os.getpid(), file, flush=True)
sys.stdin.read()
"""


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


def drop_pages(argument: dict[str, Any]) -> dict[str, Any]:
    """Drop a file from the page cache.

    /proc/sys cannot be written in a lab node, so pages go by posix_fadvise, which works even where others
    have the file open (pages that are mapped stay).
    """
    path = argument["path"]
    file = open_as(argument["user"], path)
    try:
        before = resident(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return {"resident_before": {path: before}, "resident_after": {path: resident(file)}}
    finally:
        os.close(file)


def open_as(user: list[str], path: str) -> int:
    """Descriptor of a file that is opened to be read with the rights of a service's user.

    Args:
        user: words before a command that make it run as that user.
    """
    argv = [*user, sys.executable, "-c", HOLD_OPEN, path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        words = holder.stdout.readline().decode().split() if holder.stdout else []
        if not words:
            raise OSError(f"{path} cannot be opened by {' '.join(user)}")
        file = os.open("/proc/{}/fd/{}".format(*words), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise OSError(f"{path} is not a regular file")
        return file


def empty(argument: dict[str, Any]) -> dict[str, int]:
    """Delete every file under a folder; how many there were and their bytes."""
    removed, size = 0, 0
    for path in pathlib.Path(argument["folder"]).rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                path.unlink()
                removed, size = removed + 1, size + status.st_size
    return {"files": removed, "bytes": size}


def resident(file: int) -> int | None:
    """Bytes of an open file in the page cache; None without fincore."""
    path = f"/proc/{os.getpid()}/fd/{file}"
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


ACTIONS = {
    "fingerprint": fingerprint,
    "empty": empty,
    "drop_pages": drop_pages,
    "measure_rates": measure_rates,
}

if __name__ == "__main__":
    ARGUMENT = json.loads(sys.argv[1])
    print(json.dumps(ACTIONS[ARGUMENT["do"]](ARGUMENT)))
