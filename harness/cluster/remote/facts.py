"""Runs on a node: prints its facts as JSON, or what surrounds its units. Python 3.8 alone."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from typing import Any

from harness.cluster.remote.common import output, properties

LAB_CGROUP = pathlib.Path("/run/llama-lab/cgroup")
SYS_NET = pathlib.Path("/sys/class/net")
SETTINGS = (
    "User,Restart,RestartUSec,StartLimitBurst,OOMPolicy,OOMScoreAdjust,MemoryHigh,MemoryMax,MemorySwapMax,"
    "IPAddressAllow,IPAddressDeny,NoNewPrivileges,ProtectSystem,ProtectHome,PrivateDevices,IgnoreSIGPIPE"
)


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
    values = properties(name, "LoadState,ActiveState,SubState,NRestarts,MainPID,UnitFileState,Result")
    return values if values.get("LoadState") == "loaded" else {}


def build(folder: str) -> dict[str, Any]:
    """The installed build, by its manifest."""
    manifest = pathlib.Path(folder) / "current" / "manifest.json"
    if not manifest.exists():
        return {}
    content = json.loads(manifest.read_text())
    fields = ("build", "commit", "platform", "accelerator", "binaries")
    return {key: content[key] for key in fields if content.get(key) is not None}


def facts(argument: dict[str, Any]) -> dict[str, Any]:
    """The facts, and the clock before and after they were read."""
    began_ns = time.time_ns()
    memory = meminfo()
    limit, resident = limit_and_resident()
    available = memory["MemAvailable"]
    return {
        "memory_total_bytes": memory["MemTotal"],
        "memory_available_bytes": available if limit is None else max(0, min(available, limit - resident)),
        "memory_limit_bytes": limit,
        "cpu": processor(),
        "cpus": os.cpu_count(),
        "units": {name: values for name in argument["units"] if (values := unit(name))},
        **build(argument["llama_cpp"]),
        "began_ns": began_ns,
        "ended_ns": time.time_ns(),
    }


def exposures(text: str, units: list[str]) -> dict[str, float]:
    """Overall exposure of each unit, 0 (closed) to 10 (open), from systemd-analyze(1) ``security``."""
    rows = (line.split() for line in text.splitlines())
    return {words[0]: float(words[1]) for words in rows if words and words[0] in units}


def interface(text: str) -> str | None:
    """Name of the interface that ``ip -j address show to ADDRESS`` lists."""
    links = json.loads(text or "[]")
    return next((link["ifname"] for link in links if link.get("ifname")), None)


def link(name: str, disciplines: str, sys_net: pathlib.Path = SYS_NET) -> dict[str, Any]:
    """Bits per second of an interface: what a token bucket holds it to, else what its driver negotiated.

    An interface without a device has no rate: the 10 Gbit/s of a veth are a fixed number of its driver.
    """
    for discipline in json.loads(disciplines or "[]"):
        if discipline.get("kind") == "tbf":
            rate = 8.0 * int(discipline["options"]["rate"])
            return {"interface": name, "link_bits_per_s": rate, "link_source": "token bucket"}
    try:
        negotiated = int((sys_net / name / "speed").read_text())
    except (OSError, ValueError):
        negotiated = -1
    if negotiated <= 0 or not (sys_net / name / "device").exists():
        return {"interface": name}
    return {"interface": name, "link_bits_per_s": negotiated * 1e6, "link_source": "driver"}


def surroundings(argument: dict[str, Any]) -> dict[str, Any]:
    """Settings and exposure of units, and the rate of the link: takes about a second, seldom changes."""
    units = argument["units"]
    name = interface(output("ip", "-j", "address", "show", "to", argument["address"]))
    return {
        "settings": {unit: properties(unit, SETTINGS) for unit in units},
        "exposure": exposures(output("systemd-analyze", "security", "--no-pager"), units),
        **(link(name, output("tc", "-j", "qdisc", "show", "dev", name)) if name else {}),
    }


if __name__ == "__main__":
    ARGUMENT = json.loads(sys.argv[1])
    print(json.dumps(surroundings(ARGUMENT) if "address" in ARGUMENT else facts(ARGUMENT)))
