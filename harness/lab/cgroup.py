"""Control groups around whole machines, for hosts with version 1, version 2, or both.

Every group is made in every hierarchy but cpuset (which refuses processes until CPUs are assigned), so that
two machines never share a group, whichever hierarchy the systemd inside them reads.
"""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError

_CPU_PERIOD_US = 100_000
_UNREACHABLE_RATE = 1 << 50
"""Bytes per second that no disk reads."""
_WANTED = ("memory", "cpu", "pids", "io")


@dataclass(frozen=True)
class Hierarchy:
    """One mounted tree of groups."""

    mount: Path
    version: int
    controllers: frozenset[str]


@dataclass(frozen=True)
class Usage:
    """Bytes that the processes of a group hold, and its limit (None is no limit)."""

    limit: int | None
    used: int
    swap: int


def parse_hierarchies(mountinfo: str) -> list[Hierarchy]:
    """Hierarchies in the text of ``/proc/self/mountinfo`` (proc(5)), first mount of each."""
    trees: dict[tuple[int, frozenset[str]], Hierarchy] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        root, mount = left.split()[3:5]
        kind, _source, options = right.split()[:3]
        if kind not in ("cgroup", "cgroup2") or root != "/":
            continue
        version = 2 if kind == "cgroup2" else 1
        names = frozenset() if version == 2 else frozenset(options.split(",")) - {"rw", "ro", "xattr"}
        if "cpuset" not in names:
            trees.setdefault((version, names), Hierarchy(Path(mount), version, names))
    return list(trees.values())


class Groups:
    """The computer's control groups."""

    def __init__(self, hierarchies: list[Hierarchy] | None = None) -> None:
        self.hierarchies = hierarchies or parse_hierarchies(Path("/proc/self/mountinfo").read_text())

    def folder(self, controller: str, group: Path) -> Path:
        """Folder of ``group`` where ``controller`` is in force.

        Raises:
            HarnessError: no hierarchy carries the controller.
        """
        for tree in self.hierarchies:
            if tree.version == 1 and controller in tree.controllers:
                return tree.mount / group
        # Version 2 has no separate controller for CPU time: every group counts it.
        controller = "cpu" if controller == "cpuacct" else controller
        for tree in self.hierarchies:
            if tree.version == 2 and controller in (tree.mount / "cgroup.controllers").read_text().split():
                return tree.mount / group
        raise HarnessError(f"this computer's kernel offers no '{controller}' control group; the lab needs it")

    def create(self, group: Path) -> None:
        """Make ``group`` everywhere, with the controllers it needs switched on above it."""
        for tree in self.hierarchies:
            if tree.version == 2:
                self._delegate(tree.mount, group)
            (tree.mount / group).mkdir(parents=True, exist_ok=True)

    def _delegate(self, mount: Path, group: Path) -> None:
        available = (mount / "cgroup.controllers").read_text().split()
        for depth in range(len(group.parts)):
            parent = mount.joinpath(*group.parts[:depth])
            parent.mkdir(exist_ok=True)
            for controller in _WANTED:
                if controller in available:
                    (parent / "cgroup.subtree_control").write_text(f"+{controller}")

    def enter(self, group: Path) -> None:
        """Move this process, and so its children to come, into ``group``."""
        for tree in self.hierarchies:
            (tree.mount / group / "cgroup.procs").write_text(str(os.getpid()))

    def limit(self, group: Path, memory: int, swap: int, cpu: float, deadline_s: float = 60) -> None:
        """Hold ``group`` to ``memory`` bytes, ``swap`` bytes beside them, and ``cpu`` cores (0: no limit).

        Raises:
            HarnessError: what the group holds does not fit, or did not go to swap within ``deadline_s``.
        """
        folder, until = self.folder("memory", group), time.monotonic() + deadline_s
        try:
            if (folder / "memory.max").exists():
                _limit_v2(folder, memory, swap, until)
            else:
                _limit_v1(folder, memory, swap, until)
        except OSError as error:
            raise HarnessError(f"{group}: the kernel refuses a limit of {memory} bytes: {error}") from None
        cpus = self.folder("cpu", group)
        quota = int(cpu * _CPU_PERIOD_US)
        if (cpus / "cpu.max").exists():
            (cpus / "cpu.max").write_text(f"{quota or 'max'} {_CPU_PERIOD_US}")
        else:
            (cpus / "cpu.cfs_period_us").write_text(str(_CPU_PERIOD_US))
            (cpus / "cpu.cfs_quota_us").write_text(str(quota or -1))

    def count_disks(self, group: Path) -> Path | None:
        """Have the bytes that ``group`` reads from and writes to disks counted.

        Version 2 always counts, in the folder of the memory controller. Version 1 counts only once some group
        has a limit for the disk: here one that no disk reaches.

        Returns:
            Folder that holds version 1's counters; None with version 2, or where nothing counts.
        """
        tree = next((tree for tree in self.hierarchies if "blkio" in tree.controllers), None)
        if tree is None or not (limit := tree.mount / group / "blkio.throttle.read_bps_device").exists():
            return None
        for disk in sorted(Path("/sys/block").glob("*/device")):
            limit.write_text(f"{(disk.parent / 'dev').read_text().strip()} {_UNREACHABLE_RATE}")
        return tree.mount / group

    def usage(self, group: Path) -> Usage:
        """What ``group`` and the groups below it hold now; page cache does not count as used."""
        folder = self.folder("memory", group)
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        if (folder / "memory.max").exists():
            text = (folder / "memory.max").read_text().strip()
            swap = int((folder / "memory.swap.current").read_text())
            return Usage(None if text == "max" else int(text), int(stat["anon"]) + int(stat["shmem"]), swap)
        limit = int((folder / "memory.limit_in_bytes").read_text())
        used = int(stat["total_rss"]) + int(stat.get("total_shmem", 0))
        return Usage(None if limit >= 2**62 else limit, used, int(stat.get("total_swap", 0)))

    def processes(self, group: Path) -> set[int]:
        """Every process in ``group`` or below it."""
        pids: set[int] = set()
        for tree in self.hierarchies:
            for procs in (tree.mount / group).rglob("cgroup.procs"):
                with contextlib.suppress(OSError):
                    pids |= {int(pid) for pid in procs.read_text().split()}
        return pids - {0}

    def remove(self, group: Path, deadline_s: float = 20) -> bool:
        """Kill whatever is in ``group`` and remove it; returns whether there was anything to do.

        Raises:
            HarnessError: a process in it does not die.
        """
        folders = [tree.mount / group for tree in self.hierarchies if (tree.mount / group).exists()]
        if not folders:
            return False
        until = time.monotonic() + deadline_s
        while remaining := self.processes(group):
            if time.monotonic() > until:
                raise HarnessError(f"processes {sorted(remaining)} of cgroup {group} do not die")
            for pid in remaining:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        # The kernel releases a group's last process a moment after it left cgroup.procs.
        for path in (path for folder in folders for path in sorted(folder.glob("**/"), reverse=True)):
            try:
                with contextlib.suppress(FileNotFoundError):
                    _retry_while_busy(path.rmdir, until)
            except OSError as error:
                raise HarnessError(f"cgroup {path} cannot be removed: {error}") from None
        return True


def _limit_v2(folder: Path, memory: int, swap: int, until: float) -> None:
    """Lower ``memory.high`` first: a ``memory.max`` below what is in use kills where swap is slow.

    Raises:
        OSError: what is in use did not go to swap in time; the limits are as they were.
    """
    swap_file, high = folder / "memory.swap.max", folder / "memory.high"
    with _restored_on_error(swap_file):
        if swap_file.exists():
            swap_file.write_text(str(swap))
        try:
            while (used := int((folder / "memory.current").read_text())) > memory:
                if time.monotonic() > until:
                    raise OSError(errno.EBUSY, f"{used} bytes are in use and did not go to swap")
                high.write_text(str(memory))  # each write reclaims a part
                time.sleep(0.02)
            (folder / "memory.max").write_text(str(memory))
        finally:
            high.write_text("max")


def _limit_v1(folder: Path, memory: int, swap: int, until: float) -> None:
    # Version 1 gives up (EBUSY) after a few rounds of reclaim that freed nothing, as on a slow swap device.
    alone, with_swap = folder / "memory.limit_in_bytes", folder / "memory.memsw.limit_in_bytes"
    with _restored_on_error(alone), _restored_on_error(with_swap):
        if with_swap.exists():
            with_swap.write_text("-1")
        _retry_while_busy(lambda: alone.write_text(str(memory)), until)
        if with_swap.exists():
            _retry_while_busy(lambda: with_swap.write_text(str(memory + swap)), until)


@contextlib.contextmanager
def _restored_on_error(path: Path) -> Iterator[None]:
    before = path.read_text().strip() if path.exists() else ""
    try:
        yield
    except OSError:
        if before:
            with contextlib.suppress(OSError):
                path.write_text(before)
        raise


def _retry_while_busy(action: Callable[[], object], until: float) -> None:
    while True:
        try:
            action()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return
