"""Runs on a node as root: a unit as the node knows it, as JSON. Standard library alone, Python 3.8 or later.

It looks at /proc, systemd and the socket table, and never connects to anything.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from typing import Any

from harness.cluster.remote.common import build_of, output, properties, state_and_cpu_s

LAB_KERNEL_LOG = pathlib.Path("/run/llama-lab/kernel.log")
PROPERTIES = (
    "LoadState,ActiveState,SubState,Result,NRestarts,MainPID,ExecMainPID,ExecMainCode,ExecMainStatus,"
    "ExecMainStartTimestamp"
)


def process(pid: int, look_s: float) -> dict[str, Any]:
    """A process's state, and the CPU seconds that it uses while it is looked at."""
    state, before = state_and_cpu_s(pid) if pid else (None, 0.0)
    if state is None:
        return {"state": None, "cpu_s": None, "window_s": 0.0}
    begun = time.monotonic()
    time.sleep(look_s)
    state, after = state_and_cpu_s(pid)
    return {"state": state, "cpu_s": after - before, "window_s": time.monotonic() - begun}


def peer(port: int) -> str | None:
    """Who is connected to a port of this node."""
    rows = output("ss", "-Htn", "state", "established", f"( sport = :{port} )").splitlines()
    return rows[0].split()[-1] if rows else None


def full_disk(folder: str) -> str | None:
    """A folder's disk in words, where it has less than 1 MiB left for a service; None where there is room."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    return f"{folder}: {free} bytes free of {size}" if free < 1 << 20 else None


def lab_kernel_log() -> list[str]:
    """A lab machine's part of its host's kernel log, as journalctl would print it; nothing outside a lab."""
    try:
        records = LAB_KERNEL_LOG.read_text(errors="replace").splitlines()
    except OSError:
        return []
    booted, lines = time.time() - time.monotonic(), []
    for record in records:
        head, _, message = record.partition(";")
        fields = head.split(",")
        if len(fields) >= 3 and fields[2].isdigit():
            seconds, rest = divmod(booted + int(fields[2]) / 1e6, 1)
            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
            lines.append(f"{moment}.{int(rest * 1e6):06d}+0000 {os.uname().nodename} kernel: {message}")
    return lines


def main(argument: dict[str, Any]) -> None:
    """Print everything."""
    shown = properties(argument["unit"], PROPERTIES)
    kept = ("-o", "short-iso-precise", "--no-pager", "-n", str(argument["lines"]))
    found = {
        "properties": shown,
        "journal": output("journalctl", "-u", argument["unit"], *kept).splitlines(),
        "kernel": output("journalctl", "--dmesg", *kept).splitlines() + lab_kernel_log(),
        "peer": peer(argument["port"]),
        "full_disk": full_disk(argument["cache"]),
        "build": build_of(pathlib.Path(argument["llama_cpp"]) / "current"),
        "process": process(int(shown.get("MainPID") or 0), argument["look_s"]),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
