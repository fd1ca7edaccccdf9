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

They are dropped, not hashed: sending a tensor again is quicker than reading it with Python. ``verify`` hashes
every file, with the program that comes with the build. Drafts that this program left when it was killed
(``.HASH.XXXXXX``) count against the cap, and are dropped ten minutes after they were last written to.

Tensors that ``needed.json`` names (``harness warm`` writes it) are not pruned.

    rpc_cache.py start DIR --max BYTES --keep-free BYTES     before rpc-server starts
    rpc_cache.py stop DIR                                    after it ended
    rpc_cache.py prune DIR --max BYTES --keep-free BYTES     at any time
    rpc_cache.py verify DIR --tool llama-tensor-cache        at any time
    rpc_cache.py need DIR < names                            what the current plan needs; no names: nothing
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
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
DRAFT = re.compile(r"^\.[0-9a-f]{16}\.[0-9A-Za-z]{6}$")
"""A tensor that llama-tensor-cache is writing; one that was killed leaves it."""
ABANDONED_S = 600.0
"""No draft takes that long from its last byte to its name: by then it is only read back and hashed."""


class Entry(NamedTuple):
    """One cached tensor."""

    path: Path
    size: int
    written: float
    used: float


def entries(cache: Path, pattern: re.Pattern[str] = NAME) -> list[Entry]:
    """Cached tensors, or other files of the cache whose names match, oldest use first."""
    matching = []
    with contextlib.suppress(FileNotFoundError):
        for path in cache.joinpath("rpc").iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()  # Python 3.9 has no stat(follow_symlinks=)
                if pattern.match(path.name):
                    used = max(status.st_atime, status.st_mtime)
                    matching.append(Entry(path, status.st_size, status.st_mtime, used))
    return sorted(matching, key=lambda entry: entry.used)


def suspects(tensors: list[Entry], run: dict[str, float], free: int) -> dict[Path, str]:
    """Files that may have been cut, with the reason.

    Args:
        tensors: the cache's files.
        run: ``started`` and, where the end was seen, ``ended`` of the last run (seconds); empty for none.
        free: bytes free on the file system.
    """
    reasons = {e.path: "smaller than any cached tensor" for e in tensors if e.size <= HASH_THRESHOLD}
    written = [e for e in tensors if run and e.written >= run["started"] - 1]
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


def surplus(tensors: list[Entry], excess: int) -> list[Entry]:
    """Files to remove, oldest use first, until ``excess`` bytes are freed."""
    chosen = []
    for entry in tensors:
        if excess <= 0:
            break
        chosen.append(entry)
        excess -= entry.size
    return chosen


def drop(path: Path, size: int, reason: str) -> None:
    """Remove one file, or what else has a tensor's name, and say why."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    print(f"dropped {path.name} ({size / 1e6:.1f} MB): {reason}", flush=True)


def free_bytes(cache: Path) -> int:
    """Bytes that rpc-server's user may still write."""
    status = os.statvfs(cache)
    return status.f_bavail * status.f_frsize


def read_state(path: Path) -> dict[str, float]:
    """A state file of ours; empty where there is none. One without a start time distrusts every file."""
    try:
        state = {key: float(value) for key, value in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError):
        state = {}
    return state if "started" in state else {"started": 0.0}


def write_state(path: Path, state: object) -> None:
    """Write a state file so that it is either old or new, never cut."""
    new = path.with_suffix(".new")
    with new.open("w") as stream:
        json.dump(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(path)


def needed(cache: Path) -> set[str]:
    """Names of the tensors that the current plan needs."""
    try:
        return {str(name) for name in json.loads((cache / "needed.json").read_text())}
    except (FileNotFoundError, ValueError, TypeError):
        return set()


def need(cache: Path, lines: list[str]) -> None:
    """Keep the names of what the current plan needs.

    Raises:
        SystemExit: a line is no name.
    """
    names = [line.strip() for line in lines if line.strip()]
    if strangers := [name for name in names if not NAME.match(name)]:
        raise SystemExit(f"rpc_cache.py: '{strangers[0]}' is no name of a cached tensor (16 hex digits)")
    write_state(cache / "needed.json", names)


def prune(cache: Path, cap: int, keep_free: int) -> None:
    """Bring the cache below its cap, as far as that goes without what the current plan needs."""
    tensors, kept = entries(cache), needed(cache)
    spare = [entry for entry in tensors if entry.path.name not in kept]
    missing = keep_free - free_bytes(cache) if tensors else 0
    excess = max(sum(entry.size for entry in [*tensors, *entries(cache, DRAFT)]) - cap, missing)
    chosen = surplus(spare, excess)
    for entry in chosen:
        drop(entry.path, entry.size, "the cache is above its cap, or the disk is nearly full")
    if (left := excess - sum(entry.size for entry in chosen)) > 0 and kept:
        print(f"{left / 1e6:.1f} MB above the cap are needed by the current plan and stay", flush=True)


def verify(cache: Path, tool: str) -> None:
    """Hash every cached tensor and drop those whose name does not hold.

    Raises:
        SystemExit: the program that hashes cannot be run.
    """
    folder = cache / "rpc"
    if not folder.is_dir():
        print("verified 0 tensors (0.0 MB)", flush=True)
        return
    try:
        hashed = subprocess.run([tool, "check", str(folder)], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"rpc_cache.py: cannot run {tool}: {getattr(error, 'stderr', '') or error}"
        ) from None
    good = 0
    for line in hashed.stdout.splitlines():
        name, size, word, _ = line.split()
        if word == "ok":
            good += int(size)
        else:
            drop(folder / name, int(size), "its bytes are not what its name says")
    print(f"verified {len(hashed.stdout.splitlines())} tensors ({good / 1e6:.1f} MB good)", flush=True)


def drop_abandoned(cache: Path) -> None:
    """Drop drafts of a llama-tensor-cache that was killed."""
    for draft in entries(cache, DRAFT):
        if draft.written < time.time() - ABANDONED_S:
            drop(draft.path, draft.size, "llama-tensor-cache was killed while it wrote it")


def check(cache: Path, run: dict[str, float]) -> None:
    """Drop what may have been cut."""
    tensors = entries(cache)
    sizes = {entry.path: entry.size for entry in tensors}
    for path, reason in suspects(tensors, run, free_bytes(cache)).items():
        drop(path, sizes[path], reason)


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(description="check and prune rpc-server's tensor cache")
    parser.add_argument("command", choices=["start", "stop", "prune", "verify", "need"])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--max", type=int, default=sys.maxsize)
    parser.add_argument("--keep-free", type=int, default=0)
    parser.add_argument("--tool", default="/opt/llama.cpp/current/bin/llama-tensor-cache")
    options = parser.parse_args()
    running, ended = options.cache / "running.json", options.cache / "ended.json"
    drop_abandoned(options.cache)
    if options.command == "verify":
        verify(options.cache, options.tool)
        return 0
    if options.command == "need":
        need(options.cache, sys.stdin.read().splitlines())
        return 0
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
