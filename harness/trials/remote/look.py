"""Runs on a node: prints what its llama.cpp processes do, as JSON. Standard library alone, Python 3.8.

Nothing is connected to and nothing is changed.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

PROGRAMS = ("rpc-server", "ggml-rpc-server", "llama-server")
SMALLEST_CACHED = 10 << 20
NAME = re.compile(r"^[0-9a-f]{16}$")


def output(*argv: str) -> str:
    """What a command prints; empty where it is not there."""
    try:
        return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    except OSError:
        return ""


def processes() -> Iterator[dict[str, Any]]:
    """Each llama.cpp process: program, state as in ps, and the build that it was started from."""
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            # A program that was replaced on disk ends in " (deleted)".
            program = pathlib.Path(str((folder / "exe").resolve()).replace(" (deleted)", ""))
            if program.name not in PROGRAMS:
                continue
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        build = manifest(program.parent.parent)
        yield {"program": program.name, "pid": int(folder.name), "state": state, **build}


def manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Build number, commit and hash of rpc-server, as the build's manifest has them."""
    try:
        content = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return {}
    found = {"build": content.get("build"), "commit": content.get("commit")}
    return {**found, "sha256": content.get("binaries", {}).get("rpc-server")}


def connections(port: int) -> Iterator[dict[str, Any]]:
    """Established connections from or to a port (ss(8)): bytes that wait, and the peer's last word."""
    words = f"( sport = :{port} or dport = :{port} )"
    row: dict[str, Any] = {}
    for line in output("ss", "-Htin", "state", "established", words).splitlines():
        if not line[:1].isspace():
            received, sent, local, peer = line.split()[:4]
            row = {"unread_bytes": int(received), "waiting_bytes": int(sent), "local": local, "peer": peer}
            continue
        times = {name: int(value) for name, value in re.findall(r"\b(lastsnd|lastack):(\d+)", line)}
        yield {**row, "since_sent_ms": times.get("lastsnd"), "since_heard_ms": times.get("lastack")}


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


def unit(name: str) -> dict[str, str]:
    """Properties of a unit."""
    wanted = "ActiveState,SubState,Result,NRestarts,MainPID,ExecMainCode,ExecMainStatus"
    shown = output("systemctl", "show", name, "--property", wanted)
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def main(argument: dict[str, Any]) -> None:
    """Print what is seen."""
    look = {
        "processes": list(processes()),
        "connections": list(connections(argument["port"])),
        "cache": cache(argument["cache"]),
        "unit": unit(argument["unit"]),
    }
    print(json.dumps(look))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
