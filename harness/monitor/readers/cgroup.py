"""Memory and CPU time of a machine cgroup, version 1 or 2: a lab node's truth, as /proc is the host's."""

from pathlib import Path

from harness.monitor.readers.memory import pairs
from harness.monitor.sample import Memory, Source

_UNLIMITED = 1 << 62


def cgroup_memory(folder: Path, info: dict[str, int], swap_bytes: int | None = None) -> Memory:
    """Memory of the cgroup.

    Args:
        folder: the cgroup's folder of the memory controller.
        info: the host's /proc/meminfo, in bytes: the cgroup can never have more.
        swap_bytes: size of the swap set aside for this machine, where someone has said so.
    """
    stat = pairs((folder / "memory.stat").read_text())
    if (folder / "memory.limit_in_bytes").exists():
        return _memory_v1(folder, stat, info, swap_bytes)
    return _memory_v2(folder, stat, info, swap_bytes)


def _memory_v1(folder: Path, stat: dict[str, int], info: dict[str, int], swap_bytes: int | None) -> Memory:
    limit = _limit(folder / "memory.limit_in_bytes")
    with_swap = _limit(folder / "memory.memsw.limit_in_bytes")
    allowed = with_swap - limit if with_swap < _UNLIMITED else _UNLIMITED
    # total_cache holds shared memory too
    return _memory(
        info,
        limit,
        used=stat["total_rss"] + stat["total_shmem"],
        cache=stat["total_cache"] - stat["total_shmem"],
        swap_total=swap_bytes if swap_bytes is not None else min(info["SwapTotal"], allowed),
        swap_used=stat.get("total_swap", 0),
        faults=stat["total_pgmajfault"],
        refaults=stat.get("total_workingset_refault_anon"),
        oom_kills=_pairs_if_any(folder / "memory.oom_control").get("oom_kill"),
    )


def _memory_v2(folder: Path, stat: dict[str, int], info: dict[str, int], swap_bytes: int | None) -> Memory:
    swap_max = _limit(folder / "memory.swap.max")
    swap_current = folder / "memory.swap.current"
    return _memory(
        info,
        _limit(folder / "memory.max"),
        used=stat["anon"] + stat["shmem"],
        cache=stat["file"] - stat["shmem"],
        swap_total=swap_bytes if swap_bytes is not None else min(info["SwapTotal"], swap_max),
        swap_used=int(swap_current.read_text()) if swap_current.exists() else 0,
        faults=stat["pgmajfault"],
        refaults=stat.get("workingset_refault_anon"),
        oom_kills=_pairs_if_any(folder / "memory.events").get("oom_kill"),
    )


def _memory(
    info: dict[str, int],
    limit: int,
    *,
    used: int,
    cache: int,
    swap_total: int,
    swap_used: int,
    faults: int,
    refaults: int | None,
    oom_kills: int | None,
) -> Memory:
    total = min(info["MemTotal"], limit)
    return Memory(
        source=Source.CGROUP,
        total_bytes=total,
        available_bytes=max(0, min(info["MemAvailable"], total - used)),
        used_bytes=used,
        cache_bytes=max(0, cache),
        swap_total_bytes=swap_total,
        swap_used_bytes=swap_used,
        major_faults=faults,
        refaults_anon=refaults,
        oom_kills=oom_kills,
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


def _limit(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return _UNLIMITED
    return _UNLIMITED if text == "max" else min(int(text), _UNLIMITED)


def _pairs_if_any(path: Path) -> dict[str, int]:
    try:
        return pairs(path.read_text())
    except FileNotFoundError:
        return {}
