"""Memory, faults and CPU time of the whole node, from /proc (see proc(5))."""

import os
from pathlib import Path

from harness.monitor.sample import Memory, Source

PROC = Path("/proc")


def pairs(text: str) -> dict[str, int]:
    """Numbers by name, from ``name value`` or ``name: value kB`` lines; kB become bytes."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[1].isdigit():
            scale = 1024 if words[2:] == ["kB"] else 1
            found[words[0].rstrip(":")] = int(words[1]) * scale
    return found


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
