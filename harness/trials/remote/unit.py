"""Runs on a node as root: a unit as the node knows it, as JSON. Standard library alone, Python 3.8 or later.

It looks at /proc, systemd and the socket table, and never connects to anything.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

LAB_KERNEL_LOG = pathlib.Path("/run/llama-lab/kernel.log")
PROPERTIES = (
    "LoadState,ActiveState,SubState,Result,NRestarts,MainPID,ExecMainPID,ExecMainCode,ExecMainStatus,"
    "ExecMainStartTimestamp"
)


def output(*argv: str) -> str:
    """What a command prints; empty where it cannot be run."""
    try:
        shown = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return shown.stdout.decode(errors="replace")


def stat(pid: int) -> tuple[str | None, float]:
    """State letter and CPU seconds of a process; nothing where there is none."""
    try:
        after_name = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None, 0.0
    return after_name[0], (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def process(pid: int, look_s: float) -> dict[str, Any]:
    """A process's state, and the CPU seconds that it uses while it is looked at."""
    state, before = stat(pid) if pid else (None, 0.0)
    if state is None:
        return {"state": None, "cpu_s": None, "window_s": 0.0}
    begun = time.monotonic()
    time.sleep(look_s)
    state, after = stat(pid)
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


def build(folder: str) -> str | None:
    """Build and commit of the installed llama.cpp."""
    try:
        manifest = json.loads((pathlib.Path(folder) / "current" / "manifest.json").read_text())
    except (OSError, ValueError):
        return None
    return f"{manifest.get('build')} ({manifest.get('commit')})"


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
    shown = output("systemctl", "show", argument["unit"], "--property", PROPERTIES)
    properties = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    kept = ("-o", "short-iso-precise", "--no-pager", "-n", str(argument["lines"]))
    found = {
        "properties": properties,
        "journal": output("journalctl", "-u", argument["unit"], *kept).splitlines(),
        "kernel": output("journalctl", "--dmesg", *kept).splitlines() + lab_kernel_log(),
        "peer": peer(argument["port"]),
        "full_disk": full_disk(argument["cache"]),
        "build": build(argument["llama_cpp"]),
        "process": process(int(properties.get("MainPID") or 0), argument["look_s"]),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
