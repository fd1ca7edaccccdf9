"""Functions that the scripts of this folder share; sent before each that imports them. Python 3.8 alone."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess


def output(*argv: str) -> str:
    """What a command prints; empty where it cannot be run or does not end in half a minute."""
    # A login over SSH may leave out the folders where ss and ip are.
    path = {**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    try:
        result = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30, env=path)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.decode(errors="replace")


def properties(unit: str, names: str) -> dict[str, str]:
    """Properties of a systemd unit by their names."""
    lines = output("systemctl", "show", unit, "--property", names).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def state_and_cpu_s(pid: int) -> tuple[str | None, float]:
    """State letter and CPU seconds of a process, from its ``stat``; no letter where there is none."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None, 0.0
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def build_of(folder: pathlib.Path) -> str | None:
    """Build and commit in the manifest of a build's folder: ``6751 (01d2bdc2b)``."""
    try:
        content = json.loads((folder / "manifest.json").read_text())
        return f"{content['build']} ({content['commit']})"
    except (OSError, ValueError, KeyError):
        return None
