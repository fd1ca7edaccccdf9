"""Memory, pressure and CPU time: of a whole node from /proc (proc(5)), of a lab node from its machine cgroup.

A lab node shares its host's kernel, so its /proc holds the host's figures; its cgroup, version 1 or 2, holds
its own.
"""

import os
from pathlib import Path
from typing import Any

from harness.monitor.readers import PROC, read_text
from harness.monitor.sample import Memory, Pressure, Source

_UNLIMITED = 1 << 62


def pairs(text: str) -> dict[str, int]:
    """Numbers by name, from ``name value`` or ``name: value kB`` lines; kB become bytes."""
    numbers = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[1].isdigit():
            scale = 1024 if words[2:] == ["kB"] else 1
            numbers[words[0].rstrip(":")] = int(words[1]) * scale
    return numbers


def meminfo(proc: Path = PROC) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    return pairs((proc / "meminfo").read_text())


def node_memory(info: dict[str, int], proc: Path = PROC) -> Memory:
    """Memory of the node as its kernel counts it.

    Args:
        info: what ``meminfo`` gave.
    """
    vmstat = pairs((proc / "vmstat").read_text())
    shmem = info["Shmem"]
    return Memory(
        source=Source.PROC,
        total_bytes=info["MemTotal"],
        available_bytes=info["MemAvailable"],
        used_bytes=info["AnonPages"] + shmem,
        cache_bytes=max(0, info["Cached"] + info["Buffers"] - shmem),
        swap_total_bytes=info["SwapTotal"],
        swap_used_bytes=info["SwapTotal"] - info["SwapFree"],
        major_faults=vmstat["pgmajfault"],
        oom_kills=vmstat.get("oom_kill"),
    )


def load1(proc: Path = PROC) -> float:
    """Load average of one minute: tasks that run or wait for a processor or a disk."""
    return float((proc / "loadavg").read_text().split(maxsplit=1)[0])


def node_cpu_s(proc: Path = PROC) -> float:
    """CPU seconds spent by all processors since boot: user, nice, system, irq, softirq, steal.

    Guest time is already part of user time; idle and iowait are not work.
    """
    with (proc / "stat").open() as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def cgroup_memory(folder: Path, info: dict[str, int], swap_bytes: int | None = None) -> Memory:
    """Memory of the cgroup.

    Args:
        folder: the cgroup's folder of the memory controller, version 1 or 2.
        info: the host's /proc/meminfo, in bytes: the cgroup can never have more.
        swap_bytes: size of the swap reserved for this machine, where that is known.
    """
    stat = pairs((folder / "memory.stat").read_text())
    if (folder / "memory.limit_in_bytes").exists():
        # "total_" counts the groups below too
        stat = {name.removeprefix("total_"): stat[name] for name in stat if name.startswith("total_")}
        anonymous, file, swap_used = stat["rss"], stat["cache"], stat.get("swap", 0)
        limit = _limit(folder / "memory.limit_in_bytes")
        with_swap = _limit(folder / "memory.memsw.limit_in_bytes")
        swap_max = with_swap - limit if with_swap < _UNLIMITED else _UNLIMITED
        events = "memory.oom_control"
    else:
        anonymous, file = stat["anon"], stat["file"]
        swap_used = int(read_text(folder / "memory.swap.current") or 0)
        limit, swap_max = _limit(folder / "memory.max"), _limit(folder / "memory.swap.max")
        events = "memory.events"
    used = anonymous + stat["shmem"]
    total = min(info["MemTotal"], limit)
    return Memory(
        source=Source.CGROUP,
        total_bytes=total,
        available_bytes=max(0, min(info["MemAvailable"], total - used)),
        used_bytes=used,
        cache_bytes=max(0, file - stat["shmem"]),  # both versions count shared memory as cache
        swap_total_bytes=min(info["SwapTotal"], swap_max) if swap_bytes is None else swap_bytes,
        swap_used_bytes=swap_used,
        major_faults=stat["pgmajfault"],
        refaults_anon=stat.get("workingset_refault_anon"),
        oom_kills=pairs(read_text(folder / events) or "").get("oom_kill"),
    )


def cgroup_cpu_s(folder: Path) -> float:
    """CPU seconds the cgroup has used: cpuacct.usage (v1, ns) or cpu.stat's usage_usec (v2).

    Raises:
        OSError: the folder belongs to no CPU controller.
    """
    usage = folder / "cpuacct.usage"
    if usage.exists():
        return int(usage.read_text()) / 1e9
    return pairs((folder / "cpu.stat").read_text())["usage_usec"] / 1e6


def node_pressure(proc: Path = PROC) -> Pressure | None:
    """Pressure on the whole node; None where its kernel keeps none (built or booted without ``psi``)."""
    return _pressure(Source.PROC, proc / "pressure" / "memory", proc / "pressure" / "io")


def cgroup_pressure(folder: Path) -> Pressure | None:
    """Pressure on one cgroup; None for version 1, whose kernel counts it for the whole host only."""
    return _pressure(Source.CGROUP, folder / "memory.pressure", folder / "io.pressure")


def _pressure(source: Source, memory_file: Path, io_file: Path) -> Pressure | None:
    """Pressure stall information (the kernel's accounting/psi.rst).

    A file has lines such as ``some avg10=0.22 avg60=0.10 avg300=0.02 total=1234``: percent, microseconds.
    """
    figures: dict[str, Any] = {}
    for name, path in (("memory", memory_file), ("io", io_file)):
        text = read_text(path)
        if text is None:  # no such file, or EOPNOTSUPP where it is switched off
            return None
        for line in text.splitlines():
            kind, *fields = line.split()
            values = dict(field.split("=") for field in fields)
            figures[f"{name}_{kind}_avg10"] = float(values["avg10"])
            figures[f"{name}_{kind}_total_us"] = int(values["total"])
    return Pressure(source=source, **figures)


def _limit(path: Path) -> int:
    text = (read_text(path) or "max").strip()
    return _UNLIMITED if text == "max" else min(int(text), _UNLIMITED)
