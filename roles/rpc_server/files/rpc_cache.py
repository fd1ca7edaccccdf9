#!/usr/bin/python3 -IS
"""Keeps rpc-server's tensor cache trustworthy and below its cap.

rpc-server writes a tensor in place, into a file named after its FNV-1a-64 hash (16 hex digits), and never
looks at it again, whatever its size (``ggml/src/ggml-rpc/ggml-rpc.cpp``, ``set_tensor``). A file that was
cut would be silent garbage in every later load. Which files may have been cut:

- the one being written when the process ended: the newest, if it was touched shortly before the end.
  rpc-server has no handler for SIGTERM, so this holds for an orderly stop too;
- after the machine went down without notice: all that were written in the last minute of that run, because
  the kernel writes dirty pages back within that time;
- after a full disk: all that were written since the service started, because rpc-server does not notice;
- any of at most 10 MiB: smaller tensors are never cached.

They are dropped, not hashed: sending a tensor again is quicker than reading it with Python.

    rpc_cache.py start DIR --max BYTES --keep-free BYTES     before rpc-server starts
    rpc_cache.py stop DIR                                    after it ended
    rpc_cache.py prune DIR --max BYTES --keep-free BYTES     at any time
"""

import argparse
import contextlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

HASH_THRESHOLD = 10 * 1024 * 1024
SETTLED_S = 60.0
# Tensors are written one after the other; file times are as coarse as the kernel's tick.
CLOCK_STEP_S = 0.1
FULL = 64 * 1024 * 1024
NAME = re.compile(r"^[0-9a-f]{16}$")


class Entry(NamedTuple):
    """One cached tensor."""

    path: Path
    size: int
    written: float
    used: float


def entries(cache: Path) -> list[Entry]:
    """Cached tensors, oldest use first."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in cache.joinpath("rpc").iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat(follow_symlinks=False)
                if NAME.match(path.name):
                    used = max(status.st_atime, status.st_mtime)
                    found.append(Entry(path, status.st_size, status.st_mtime, used))
    return sorted(found, key=lambda entry: entry.used)


def suspects(found: list[Entry], run: dict[str, float], free: int) -> dict[Path, str]:
    """Files that may have been cut, with the reason.

    Args:
        found: the cache's files.
        run: ``started`` and, where the end was seen, ``ended`` of the last run (seconds); empty for none.
        free: bytes free on the file system.
    """
    reasons = {e.path: "smaller than any cached tensor" for e in found if e.size <= HASH_THRESHOLD}
    written = [e for e in found if run and e.written >= run["started"] - 1]
    if not written:
        return reasons
    newest = max(e.written for e in written)
    for entry in written:
        if free < FULL:
            reasons.setdefault(entry.path, "written before the disk was full")
        elif "ended" not in run and entry.written >= newest - SETTLED_S:
            reasons.setdefault(entry.path, "written in the last minute before the node went down")
        elif "ended" in run and entry.written >= max(newest - CLOCK_STEP_S, run["ended"] - SETTLED_S):
            reasons.setdefault(entry.path, "the last one written when rpc-server ended")
    return reasons


def surplus(found: list[Entry], cap: int, missing: int) -> list[Entry]:
    """Files to remove, oldest use first, until the cache is below its cap and ``missing`` bytes are freed."""
    excess = max(sum(e.size for e in found) - cap, missing)
    chosen = []
    for entry in found:
        if excess <= 0:
            break
        chosen.append(entry)
        excess -= entry.size
    return chosen


def drop(path: Path, size: int, reason: str) -> None:
    """Remove one file and say why."""
    path.unlink(missing_ok=True)
    print(f"dropped {path.name} ({size / 1e6:.1f} MB): {reason}", flush=True)


def free_bytes(cache: Path) -> int:
    """Bytes that rpc-server's user may still write."""
    status = os.statvfs(cache)
    return status.f_bavail * status.f_frsize


def read_state(path: Path) -> dict[str, float]:
    """A state file of ours; empty where there is none. One that cannot be read distrusts every file."""
    try:
        return {key: float(value) for key, value in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError):
        return {"started": 0.0}


def write_state(path: Path, state: dict[str, float]) -> None:
    """Write a state file so that it is either old or new, never cut."""
    new = path.with_suffix(".new")
    with new.open("w") as stream:
        json.dump(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(path)


def prune(cache: Path, cap: int, keep_free: int) -> None:
    """Bring the cache below its cap."""
    found = entries(cache)
    for entry in surplus(found, cap, keep_free - free_bytes(cache) if found else 0):
        drop(entry.path, entry.size, "the cache is above its cap, or the disk is nearly full")


def check(cache: Path, run: dict[str, float]) -> None:
    """Drop what may have been cut."""
    found = entries(cache)
    sizes = {entry.path: entry.size for entry in found}
    for path, reason in suspects(found, run, free_bytes(cache)).items():
        drop(path, sizes[path], reason)


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(description="check and prune rpc-server's tensor cache")
    parser.add_argument("command", choices=["start", "stop", "prune"])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--max", type=int, default=sys.maxsize)
    parser.add_argument("--keep-free", type=int, default=0)
    options = parser.parse_args()
    running, ended = options.cache / "running.json", options.cache / "ended.json"
    if options.command == "stop":
        if state := read_state(running):
            write_state(ended, {**state, "ended": time.time()})
            running.unlink()
        return 0
    if options.command == "start":
        check(options.cache, read_state(running) or read_state(ended))
        write_state(running, {"started": time.time()})
        ended.unlink(missing_ok=True)
    elif free_bytes(options.cache) < FULL:
        check(options.cache, {**read_state(running), "ended": time.time()} if read_state(running) else {})
    prune(options.cache, options.max, options.keep_free)
    return 0


if __name__ == "__main__":
    sys.exit(main())
