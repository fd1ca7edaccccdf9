"""Control groups around whole machines, for hosts with version 1, version 2, or both.

Every group is made in every hierarchy but cpuset (which refuses processes until it is told of CPUs), so
that two machines never meet in one group, whichever hierarchy the systemd inside them looks at.
"""

import contextlib
import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError

_CPU_PERIOD_US = 100_000
_UNREACHED = 1 << 50
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
    found: dict[tuple[int, frozenset[str]], Hierarchy] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        root, mount = left.split()[3:5]
        kind, _source, options = right.split()[:3]
        if kind not in ("cgroup", "cgroup2") or root != "/":
            continue
        version = 2 if kind == "cgroup2" else 1
        names = frozenset() if version == 2 else frozenset(options.split(",")) - {"rw", "ro", "xattr"}
        if "cpuset" not in names:
            found.setdefault((version, names), Hierarchy(Path(mount), version, names))
    return list(found.values())


class Groups:
    """The computer's control groups."""

    def __init__(self, hierarchies: list[Hierarchy] | None = None) -> None:
        if hierarchies is None:
            hierarchies = parse_hierarchies(Path("/proc/self/mountinfo").read_text())
        self.hierarchies = hierarchies

    def folder(self, controller: str, group: Path) -> Path:
        """Folder of ``group`` where ``controller`` is in force.

        Raises:
            HarnessError: no hierarchy carries the controller.
        """
        for tree in self.hierarchies:
            if tree.version == 1 and controller in tree.controllers:
                return tree.mount / group
        # Version 2 has no controller of its own for CPU time: every group counts it.
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
        folder = self.folder("memory", group)
        try:
            if (folder / "memory.max").exists():
                (folder / "memory.max").write_text(str(memory))
                _write_if_there(folder / "memory.swap.max", str(swap))
            else:
                _write_if_there(folder / "memory.memsw.limit_in_bytes", "-1")
                _shrink(folder / "memory.limit_in_bytes", memory, time.monotonic() + deadline_s)
                _write_if_there(folder / "memory.memsw.limit_in_bytes", str(memory + swap))
        except OSError as error:
            raise HarnessError(f"{group}: the kernel refuses a limit of {memory} bytes: {error}") from None
        cpus = self.folder("cpu", group)
        quota = int(cpu * _CPU_PERIOD_US)
        if (cpus / "cpu.max").exists():
            (cpus / "cpu.max").write_text(f"{quota or 'max'} {_CPU_PERIOD_US}")
        else:
            (cpus / "cpu.cfs_period_us").write_text(str(_CPU_PERIOD_US))
            (cpus / "cpu.cfs_quota_us").write_text(str(quota or -1))

    def count_disks(self, group: Path, sys: Path = Path("/sys")) -> Path | None:
        """Have the bytes that ``group`` reads from and writes to disks counted.

        Version 2 does so by itself, in the folder of the memory controller. Version 1 counts only once some
        group has a limit for the disk: here one that nobody reaches.

        Returns:
            Folder that holds version 1's counters; None with version 2, or where nothing counts.
        """
        tree = next((tree for tree in self.hierarchies if "blkio" in tree.controllers), None)
        if tree is None or not (tree.mount / group / "blkio.throttle.read_bps_device").exists():
            return None
        for disk in sorted((sys / "block").glob("*/device")):
            number = (disk.parent / "dev").read_text().strip()
            (tree.mount / group / "blkio.throttle.read_bps_device").write_text(f"{number} {_UNREACHED}")
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
        found: set[int] = set()
        for tree in self.hierarchies:
            for procs in (tree.mount / group).rglob("cgroup.procs"):
                with contextlib.suppress(OSError):
                    found |= {int(pid) for pid in procs.read_text().split()}
        return found - {0}

    def remove(self, group: Path, deadline_s: float = 20) -> bool:
        """Kill whatever is in ``group`` and remove it; tells whether there was anything to do.

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
        for folder in folders:
            _remove_tree(folder, until)
        return True


def _write_if_there(path: Path, text: str) -> None:
    if path.exists():
        path.write_text(text)


def _shrink(path: Path, memory: int, until: float) -> None:
    # Version 1 gives up (EBUSY) after a few rounds of reclaim that freed nothing, as on a slow swap device.
    while True:
        try:
            path.write_text(str(memory))
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            return


def _remove_tree(folder: Path, until: float) -> None:
    for below in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        _rmdir(below, until)
    _rmdir(folder, until)


def _rmdir(folder: Path, until: float) -> None:
    # The kernel lets go of a group's last process a moment after it is gone from cgroup.procs.
    while True:
        try:
            return folder.rmdir()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise HarnessError(f"cgroup {folder} cannot be removed: {error}") from None
            time.sleep(0.02)
