"""Runs on a node: prints its facts as JSON. Standard library alone, Python 3.8 or later."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from typing import Any

from harness.cluster.remote.common import properties

LAB_CGROUP = pathlib.Path("/run/llama-lab/cgroup")


def meminfo() -> dict[str, int]:
    """Bytes of each line of /proc/meminfo."""
    lines = (line.split() for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}


def limit_and_resident() -> tuple[int | None, int]:
    """Memory limit around this node and what counts against it, or nothing outside a lab."""
    v1, v2 = LAB_CGROUP / "memory.limit_in_bytes", LAB_CGROUP / "memory.max"
    if v1.exists():
        limit, names = int(v1.read_text()), ("total_rss", "total_shmem")
    elif v2.exists() and v2.read_text().strip() != "max":
        limit, names = int(v2.read_text()), ("anon", "shmem")
    else:
        return None, 0
    pairs = (line.split() for line in (LAB_CGROUP / "memory.stat").read_text().splitlines())
    counts = {name: int(value) for name, value in pairs}
    return limit, sum(counts.get(name, 0) for name in names)


def processor() -> str | None:
    """Model name of the first processor."""
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return None


def unit(name: str) -> dict[str, str]:
    """Properties of one systemd unit; empty where it is not installed."""
    wanted = "LoadState,ActiveState,SubState,NRestarts,MainPID,UnitFileState,Result"
    values = properties(name, wanted)
    return values if values.get("LoadState") == "loaded" else {}


def build(folder: str) -> dict[str, Any]:
    """What the build manifest says is installed."""
    manifest = pathlib.Path(folder) / "current" / "manifest.json"
    if not manifest.exists():
        return {}
    content = json.loads(manifest.read_text())
    kept = ("build", "commit", "platform", "accelerator", "binaries")
    return {key: content[key] for key in kept if content.get(key) is not None}


def main(argument: dict[str, Any]) -> None:
    """Print the facts; the clock last."""
    memory = meminfo()
    limit, resident = limit_and_resident()
    available = memory["MemAvailable"]
    facts = {
        "memory_total_bytes": memory["MemTotal"],
        "memory_available_bytes": available if limit is None else max(0, min(available, limit - resident)),
        "memory_limit_bytes": limit,
        "cpu": processor(),
        "cpus": os.cpu_count(),
        "units": {name: shown for name in argument["units"] for shown in [unit(name)] if shown},
        **build(argument["llama_cpp"]),
    }
    facts["time_ns"] = time.time_ns()
    print(json.dumps(facts))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
