"""Runs on a node, as root: empties the RPC tensor cache and drops files from the page cache. Prints JSON.

Standard library alone, Python 3.8 or later. /proc/sys cannot be written in a lab node, so pages go by
posix_fadvise, which works on the file whoever else has it open (pages that are mapped stay).
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any


def empty(folder: str) -> dict[str, int]:
    """Delete every file under a folder; how many there were and their bytes."""
    files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file() and not path.is_symlink()]
    sizes = [path.stat().st_size for path in files]
    for path in files:
        path.unlink()
    return {"files": len(files), "bytes": sum(sizes)}


def drop(path: str) -> int | None:
    """Drop one file's clean pages; the bytes that stayed resident, where fincore can tell."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return resident(path)


def resident(path: str) -> int | None:
    """Bytes of a file in the page cache; None without fincore."""
    try:
        shown = subprocess.run(
            ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)],
            stdout=subprocess.PIPE,
            text=True,
        )
    except OSError:
        return None
    return int(shown.stdout) if shown.returncode == 0 and shown.stdout.strip().isdigit() else None


def main(argument: dict[str, Any]) -> None:
    """Do what the argument asks for and say what was done."""
    done: dict[str, Any] = {}
    if argument.get("rpc_cache"):
        done["rpc_cache_removed"] = empty(argument["rpc_cache"])
    done["resident_before"] = {path: resident(path) for path in argument["drop"]}
    done["resident_after"] = {path: drop(path) for path in argument["drop"]}
    print(json.dumps(done))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
