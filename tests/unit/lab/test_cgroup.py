"""Control groups of either version, against folders that stand for the kernel's."""

import errno
from pathlib import Path

import pytest
from harness.errors import HarnessError
from harness.lab.cgroup import Groups, Hierarchy, Usage, parse_hierarchies

HYBRID = """\
30 24 0:26 / /sys/fs/cgroup rw shared:1 - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/memory rw shared:2 - cgroup cgroup rw,memory
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
34 30 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
35 30 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
36 24 0:31 /elsewhere /mnt/part rw - cgroup2 cgroup2 rw
"""
UNIFIED = "30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
GROUP = Path("llama-lab/t/node1")


def test_every_hierarchy_is_found_but_cpuset_and_partial_mounts() -> None:
    mounts = {str(tree.mount): tree.version for tree in parse_hierarchies(HYBRID)}
    assert mounts == {
        "/sys/fs/cgroup/memory": 1,
        "/sys/fs/cgroup/cpu,cpuacct": 1,
        "/sys/fs/cgroup/systemd": 1,
        "/sys/fs/cgroup/unified": 2,
    }
    assert [tree.version for tree in parse_hierarchies(UNIFIED)] == [2]


def v1(root: Path) -> Groups:
    for name in ("memory", "cpu"):
        (root / name / GROUP).mkdir(parents=True)
    return Groups([Hierarchy(root / name, 1, frozenset({name})) for name in ("memory", "cpu")])


def v2(root: Path) -> Groups:
    (root / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    return Groups([Hierarchy(root, 2, frozenset())])


def v2_group(root: Path, current: int) -> tuple[Groups, Path]:
    """A group of version 2 whose processes hold ``current`` bytes."""
    groups, folder = v2(root), root / GROUP
    groups.create(GROUP)
    for name in ("memory.max", "memory.high", "memory.swap.max", "cpu.max"):
        (folder / name).write_text("max\n")
    (folder / "memory.current").write_text(f"{current}\n")
    return groups, folder


def test_version_1_limits_memory_then_memory_with_swap(tmp_path: Path) -> None:
    groups, memory, cpu = v1(tmp_path), tmp_path / "memory" / GROUP, tmp_path / "cpu" / GROUP
    (memory / "memory.memsw.limit_in_bytes").write_text("")
    groups.limit(GROUP, memory=1000, swap=500, cpu=0.5)
    assert (memory / "memory.limit_in_bytes").read_text() == "1000"
    assert (memory / "memory.memsw.limit_in_bytes").read_text() == "1500"
    assert (cpu / "cpu.cfs_quota_us").read_text() == "50000"
    groups.limit(GROUP, memory=1000, swap=0, cpu=0)
    assert (memory / "memory.memsw.limit_in_bytes").read_text() == "1000"
    assert (cpu / "cpu.cfs_quota_us").read_text() == "-1"


def test_version_2_switches_controllers_on_all_the_way_down(tmp_path: Path) -> None:
    groups = v2(tmp_path)
    groups.create(GROUP)
    for folder in (tmp_path, tmp_path / "llama-lab", tmp_path / "llama-lab/t"):
        assert (folder / "cgroup.subtree_control").exists()
    assert not (tmp_path / GROUP / "cgroup.subtree_control").exists()
    assert groups.folder("cpuacct", GROUP) == tmp_path / GROUP


def test_version_2_limits_memory_swap_and_cpu(tmp_path: Path) -> None:
    groups, folder = v2_group(tmp_path, 0)
    groups.limit(GROUP, memory=1000, swap=500, cpu=2)
    assert (folder / "memory.max").read_text() == "1000"
    assert (folder / "memory.swap.max").read_text() == "500"
    assert (folder / "cpu.max").read_text() == "200000 100000"
    groups.limit(GROUP, memory=1000, swap=0, cpu=0)
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "cpu.max").read_text() == "max 100000"


def test_page_cache_is_not_used_memory(tmp_path: Path) -> None:
    groups, folder = v1(tmp_path), tmp_path / "memory" / GROUP
    (folder / "memory.limit_in_bytes").write_text("3221225472\n")
    (folder / "memory.stat").write_text(
        "cache 999\ntotal_cache 999\ntotal_rss 10\ntotal_shmem 5\ntotal_swap 7\n"
    )
    assert groups.usage(GROUP) == Usage(limit=3221225472, used=15, swap=7)
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert groups.usage(GROUP).limit is None


def test_version_2_usage_reads_the_same_things(tmp_path: Path) -> None:
    groups, folder = v2(tmp_path), tmp_path / GROUP
    groups.create(GROUP)
    (folder / "memory.max").write_text("max\n")
    (folder / "memory.stat").write_text("anon 10\nfile 999\nshmem 5\n")
    (folder / "memory.swap.current").write_text("7\n")
    assert groups.usage(GROUP) == Usage(limit=None, used=15, swap=7)


def test_a_kernel_without_the_controller_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("pids\n")
    with pytest.raises(HarnessError, match="no 'memory' control group"):
        Groups([Hierarchy(tmp_path, 2, frozenset())]).folder("memory", GROUP)


def test_a_limit_refused_while_memory_goes_to_swap_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, refusals, write = v1(tmp_path), [errno.EBUSY, errno.EBUSY], Path.write_text

    def busy_twice(path: Path, text: str) -> int:
        if path.name == "memory.limit_in_bytes" and refusals:
            raise OSError(refusals.pop(), "Device or resource busy")
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", busy_twice)
    groups.limit(GROUP, memory=1000, swap=0, cpu=0)
    assert (tmp_path / "memory" / GROUP / "memory.limit_in_bytes").read_text() == "1000"
    refusals.append(errno.EBUSY)
    with pytest.raises(HarnessError, match=r"refuses a limit of 1000 bytes: .*busy"):
        groups.limit(GROUP, memory=1000, swap=0, cpu=0, deadline_s=-1)


def test_a_limit_that_the_kernel_refuses_is_an_error(tmp_path: Path) -> None:
    groups = v1(tmp_path)
    (tmp_path / "memory" / GROUP / "memory.limit_in_bytes").mkdir()
    with pytest.raises(HarnessError, match="refuses a limit of 1000 bytes"):
        groups.limit(GROUP, memory=1000, swap=0, cpu=0)


def test_version_1_keeps_its_limit_with_swap_where_a_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, memory, write = v1(tmp_path), tmp_path / "memory" / GROUP, Path.write_text
    (memory / "memory.memsw.limit_in_bytes").write_text("9000\n")

    def busy(path: Path, text: str) -> int:
        if path.name == "memory.limit_in_bytes":
            raise OSError(errno.EBUSY, "Device or resource busy")
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", busy)
    with pytest.raises(HarnessError, match="refuses a limit"):
        groups.limit(GROUP, memory=1000, swap=500, cpu=0, deadline_s=-1)
    assert (memory / "memory.memsw.limit_in_bytes").read_text() == "9000"


def test_version_2_lets_memory_go_to_swap_before_the_limit_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write to memory.high has the kernel reclaim a part, as on a slow swap device."""
    groups, folder = v2_group(tmp_path, 3000)
    write = Path.write_text

    def reclaim(path: Path, text: str) -> int:
        current = int((folder / "memory.current").read_text())
        if path.name == "memory.high" and text != "max":
            write(folder / "memory.current", str(max(int(text), current - 800)))
        if path.name == "memory.max":
            assert current <= int(text), "processes would be killed"
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", reclaim)
    groups.limit(GROUP, memory=1000, swap=5000, cpu=0)
    assert (folder / "memory.max").read_text() == "1000"
    assert (folder / "memory.high").read_text() == "max"


def test_version_2_keeps_its_limits_where_memory_does_not_go_to_swap_in_time(tmp_path: Path) -> None:
    groups, folder = v2_group(tmp_path, 3000)
    with pytest.raises(HarnessError, match="3000 bytes"):
        groups.limit(GROUP, memory=1000, swap=0, cpu=0, deadline_s=-1)
    for name in ("memory.max", "memory.high", "memory.swap.max"):
        assert (folder / name).read_text().strip() == "max"
