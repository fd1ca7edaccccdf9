"""Runs on a node: prints what its llama.cpp processes do, as JSON. Standard library alone, Python 3.8.

Nothing is connected to and nothing is changed.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from harness.cluster.remote.common import build_of, output, properties, state_and_cpu_s

PROGRAMS = ("rpc-server", "ggml-rpc-server", "llama-server")
SMALLEST_CACHED = 10 << 20
"""rpc-server keeps no tensor that is smaller, in bytes."""
UNIT = "ActiveState,SubState,Result,NRestarts,MainPID,ExecMainCode,ExecMainStatus"
NAME = re.compile(r"^[0-9a-f]{16}$")


def processes() -> Iterator[dict[str, Any]]:
    """Each llama.cpp process: program, state as in ps, CPU time, and the build that it was started from."""
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            # A program that was replaced on disk ends in " (deleted)".
            program = pathlib.Path(str((folder / "exe").resolve()).replace(" (deleted)", ""))
            if program.name not in PROGRAMS:
                continue
        except OSError:
            continue
        state, cpu_s = state_and_cpu_s(int(folder.name))
        if state is None:
            continue
        yield {
            "program": program.name,
            "pid": int(folder.name),
            "state": state,
            "cpu_s": cpu_s,
            "build": build_of(program.parent.parent),
        }


def connections(port: int) -> Iterator[dict[str, Any]]:
    """Established connections from or to a port (ss(8)): bytes that wait, and when the peer last spoke."""
    words = f"( sport = :{port} or dport = :{port} )"
    row: dict[str, Any] = {}
    # A peer that has gone is one too, for as long as this end has not taken note.
    states = ("state", "established", "state", "close-wait")
    for line in output("ss", "-Htin", *states, words).splitlines():
        if not line[:1].isspace():
            received, sent, local, peer = line.split()[1:5]
            row = {"unread_bytes": int(received), "waiting_bytes": int(sent), "local": local, "peer": peer}
            continue
        times = {name: int(value) / 1000 for name, value in re.findall(r"\b(lastsnd|lastack):(\d+)", line)}
        yield {**row, "since_sent_s": times.get("lastsnd"), "since_heard_s": times.get("lastack")}


def cache(folder: str) -> dict[str, Any] | None:
    """The tensor cache's disk, and those of its files that are too small to be whole."""
    try:
        status = os.statvfs(folder)
        files = [path for path in pathlib.Path(folder).iterdir() if NAME.match(path.name)]
        cut = sorted(path.name for path in files if path.stat().st_size <= SMALLEST_CACHED)
    except OSError:
        return None
    return {
        "folder": folder,
        "free_bytes": status.f_bavail * status.f_frsize,
        "total_bytes": status.f_blocks * status.f_frsize,
        "files": len(files),
        "cut": cut,
    }


def main(argument: dict[str, Any]) -> None:
    """Look, look again at the CPU times after ``window_s`` seconds, and print what was seen."""
    before = {process["pid"]: process["cpu_s"] for process in processes()}
    time.sleep(argument["window_s"])
    seen = [{**one, "used_s": one["cpu_s"] - before.get(one["pid"], one["cpu_s"])} for one in processes()]
    look = {
        "processes": seen,
        "connections": list(connections(argument["port"])),
        "cache": cache(argument["cache"]),
        "unit": properties(argument["unit"], UNIT),
    }
    print(json.dumps(look))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
