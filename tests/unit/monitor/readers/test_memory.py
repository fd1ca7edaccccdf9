"""Memory and CPU time as the monitor reads them, from recorded /proc and cgroup files."""

import shutil
from pathlib import Path

from harness.monitor.readers.memory import (
    cgroup_cpu_s,
    cgroup_memory,
    meminfo,
    node_cpu_s,
    node_memory,
    pairs,
)
from harness.monitor.sample import Source

DATA = Path(__file__).parents[3] / "data" / "monitor"
PROC = DATA / "proc"
V1 = DATA / "cgroup-v1"
V2 = DATA / "cgroup-v2"
STARVED = DATA / "cgroup-v1-starved"
MIB = 1 << 20


def test_kilobytes_become_bytes_and_text_is_left_out() -> None:
    assert pairs("MemTotal:  2 kB\npgmajfault 7\nName:\trpc-server\n") == {"MemTotal": 2048, "pgmajfault": 7}


def test_node_memory_does_not_count_page_cache_as_used() -> None:
    info = meminfo(PROC)
    memory = node_memory(info, PROC)
    assert memory.source is Source.PROC
    assert memory.total_bytes == info["MemTotal"]
    assert memory.available_bytes == info["MemAvailable"]
    assert memory.used_bytes == info["AnonPages"] + info["Shmem"]
    assert memory.cache_bytes == info["Cached"] + info["Buffers"] - info["Shmem"]
    assert memory.used_bytes + memory.cache_bytes < memory.total_bytes


def test_node_counts_faults_and_oom_kills() -> None:
    memory = node_memory(meminfo(PROC), PROC)
    vmstat = pairs((PROC / "vmstat").read_text())
    assert (memory.major_faults, memory.oom_kills) == (vmstat["pgmajfault"], vmstat["oom_kill"])


def test_cpu_time_leaves_out_idle_and_waiting(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  100 20 30 999999 888888 4 5 6 70 8\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    assert node_cpu_s(tmp_path) == 1.65  # 165 ticks of 10 ms; guest time is part of user time


def test_v1_cgroup_is_read_instead_of_the_host() -> None:
    memory = cgroup_memory(V1, meminfo(PROC))
    assert memory.source is Source.CGROUP
    assert memory.total_bytes == 256 * MIB
    assert 120 * MIB <= memory.used_bytes < 121 * MIB  # 100 MiB anonymous, 20 MiB shared
    assert 100 * MIB <= memory.cache_bytes < 101 * MIB  # a file of 100 MiB: cache, not use
    assert memory.available_bytes == 256 * MIB - memory.used_bytes
    assert memory.oom_kills == 0


def test_cgroup_never_has_more_available_than_the_host() -> None:
    info = {**meminfo(PROC), "MemAvailable": 5 * MIB}
    assert cgroup_memory(V1, info).available_bytes == 5 * MIB


def test_overfull_cgroup_has_nothing_available(tmp_path: Path) -> None:
    shutil.copytree(V1, tmp_path / "g")
    (tmp_path / "g" / "memory.limit_in_bytes").write_text(f"{64 * MIB}\n")
    assert cgroup_memory(tmp_path / "g", meminfo(PROC)).available_bytes == 0


def test_unlimited_cgroup_has_the_hosts_memory(tmp_path: Path) -> None:
    shutil.copytree(V1, tmp_path / "g")
    (tmp_path / "g" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    info = meminfo(PROC)
    assert cgroup_memory(tmp_path / "g", info).total_bytes == info["MemTotal"]


def test_swap_size_comes_from_who_made_the_swap() -> None:
    assert cgroup_memory(V1, meminfo(PROC), swap_bytes=7 * MIB).swap_total_bytes == 7 * MIB


def test_swap_size_is_bounded_by_the_cgroup(tmp_path: Path) -> None:
    shutil.copytree(V1, tmp_path / "g")
    (tmp_path / "g" / "memory.memsw.limit_in_bytes").write_text(f"{300 * MIB}\n")
    info = {**meminfo(PROC), "SwapTotal": 1024 * MIB}
    assert cgroup_memory(tmp_path / "g", info).swap_total_bytes == 44 * MIB


def test_starved_node_shows_its_swap_and_not_the_hosts() -> None:
    swap = int((STARVED / "swap_bytes").read_text())
    memory = cgroup_memory(STARVED, meminfo(PROC), swap)
    assert memory.total_bytes == 3 << 30
    assert memory.available_bytes < 64 * MIB
    assert memory.swap_used_bytes == 383361024
    assert memory.swap_total_bytes == swap
    assert (memory.major_faults, memory.refaults_anon) == (240060, 1732406)
    assert cgroup_cpu_s(STARVED) > 80


def test_v2_cgroup_gives_the_same_figures() -> None:
    memory = cgroup_memory(V2, meminfo(PROC))
    assert memory.source is Source.CGROUP
    assert memory.total_bytes == 256 * MIB
    assert memory.used_bytes == 120 * MIB
    assert memory.cache_bytes == 100 * MIB
    assert memory.available_bytes == 136 * MIB
    assert memory.swap_used_bytes == 48 * MIB
    assert (memory.major_faults, memory.refaults_anon, memory.oom_kills) == (210, 5000, 2)


def test_v2_cgroup_without_limits_or_swap_controller(tmp_path: Path) -> None:
    shutil.copytree(V2, tmp_path / "g")
    (tmp_path / "g" / "memory.max").write_text("max\n")
    (tmp_path / "g" / "memory.swap.max").unlink()
    (tmp_path / "g" / "memory.swap.current").unlink()
    info = meminfo(PROC)
    memory = cgroup_memory(tmp_path / "g", info)
    assert memory.total_bytes == info["MemTotal"]
    assert (memory.swap_total_bytes, memory.swap_used_bytes) == (info["SwapTotal"], 0)


def test_cpu_time_of_a_cgroup_is_in_seconds(tmp_path: Path) -> None:
    assert cgroup_cpu_s(V2) == 12.345678
    (tmp_path / "cpuacct.usage").write_text("5500000000\n")
    assert cgroup_cpu_s(tmp_path) == 5.5
