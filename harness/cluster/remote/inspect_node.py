"""Runs on a node as root: prints its llama.cpp processes, sockets, tensor cache and one unit, as JSON.

Standard library alone, Python 3.8 or later. It connects to nothing and changes nothing.
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
LAB_KERNEL_LOG = pathlib.Path("/run/llama-lab/kernel.log")
CACHED_NAME = re.compile(r"^[0-9a-f]{16}$")
PROPERTIES = (
    "LoadState,ActiveState,SubState,Result,NRestarts,MainPID,ExecMainPID,ExecMainCode,ExecMainStatus,"
    "ExecMainStartTimestamp"
)


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
    """Connections from or to a port (ss(8)): bytes that wait, and when the peer last acknowledged."""
    words = f"( sport = :{port} or dport = :{port} )"
    row: dict[str, Any] = {}
    # A connection that only the peer has closed counts until this end closes it too.
    states = ("state", "established", "state", "close-wait")
    for line in output("ss", "-Htin", *states, words).splitlines():
        if not line[:1].isspace():
            received, sent, local, peer = line.split()[1:5]
            row = {"unread_bytes": int(received), "waiting_bytes": int(sent), "local": local, "peer": peer}
            continue
        times = {name: int(value) / 1000 for name, value in re.findall(r"\b(lastsnd|lastack):(\d+)", line)}
        yield {**row, "since_sent_s": times.get("lastsnd"), "since_acknowledged_s": times.get("lastack")}


def cache(folder: str, threshold: int) -> dict[str, Any] | None:
    """The tensor cache's disk, and those of its files that are too small to be whole."""
    try:
        status = os.statvfs(folder)
        files = [path for path in pathlib.Path(folder).iterdir() if CACHED_NAME.match(path.name)]
        cut = sorted(path.name for path in files if path.lstat().st_size <= threshold)
    except OSError:
        return None
    return {
        "folder": folder,
        "free_bytes": status.f_bavail * status.f_frsize,
        "total_bytes": status.f_blocks * status.f_frsize,
        "files": len(files),
        "cut": cut,
    }


def lab_kernel_log() -> list[str]:
    """A lab machine's part of its host's kernel log, as journalctl would print it; empty outside a lab."""
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


def logs(unit: str, lines: int) -> dict[str, list[str]]:
    """The last lines of the unit's journal and of the kernel log."""
    options = ("-o", "short-iso-precise", "--no-pager", "-n", str(lines))
    return {
        "journal": output("journalctl", "-u", unit, *options).splitlines(),
        "kernel": output("journalctl", "--dmesg", *options).splitlines() + lab_kernel_log(),
    }


def main(argument: dict[str, Any]) -> None:
    """Read the CPU times twice, ``window_s`` seconds apart, and everything else once."""
    before = {process["pid"]: process["cpu_s"] for process in processes()}
    time.sleep(argument["window_s"])
    after = [{**now, "used_s": now["cpu_s"] - before.get(now["pid"], now["cpu_s"])} for now in processes()]
    inspection = {
        "processes": after,
        "connections": list(connections(argument["port"])),
        "cache": cache(argument["cache"], argument["cache_threshold"]),
        "unit": properties(argument["unit"], PROPERTIES),
        "installed_build": build_of(pathlib.Path(argument["llama_cpp"]) / "current"),
        **(logs(argument["unit"], argument["log_lines"]) if argument["log_lines"] else {}),
    }
    print(json.dumps(inspection))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
