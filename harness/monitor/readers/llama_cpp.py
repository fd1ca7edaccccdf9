"""llama.cpp on the node: the figures of each of its processes from /proc/PID, and the installed build."""

import hashlib
import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from harness.monitor.readers import PROC, read_text
from harness.monitor.readers.memory import pairs
from harness.monitor.sample import RPC_SERVERS, Build, Process

_NAME_CHECKS = 3
"""How often the name of a new process is read: it changes when it execs, a moment after it appears."""
_RESCAN_EVERY = 30
"""Reads after which every name is read again, in case a number was used twice."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_HASHED = ("build", "commit", "binaries")
"""What makes two builds the same; a manifest also says where and when it was made."""


class ProcessTable:
    """Finds processes by name without reading every process each time."""

    def __init__(self, names: Collection[str] = (*RPC_SERVERS, "llama-server"), proc: Path = PROC) -> None:
        self._names = frozenset(names)
        self._proc = proc
        self._checks: dict[int, int] = {}
        self._named: set[int] = set()
        self._starts: dict[int, tuple[int, int]] = {}
        self._reads = 0

    def read(self) -> list[Process]:
        """Processes of the given names that run at this moment, by number."""
        self._discover()
        processes = (self._process(pid) for pid in sorted(self._named))
        return [process for process in processes if process is not None]

    def _discover(self) -> None:
        if self._reads % _RESCAN_EVERY == 0:
            self._checks.clear()
        self._reads += 1
        with os.scandir(self._proc) as entries:
            present = {int(entry.name) for entry in entries if entry.name.isdigit()}
        self._named &= present
        self._starts = {pid: start for pid, start in self._starts.items() if pid in present}
        self._checks = {pid: self._checks.get(pid, 0) for pid in present}
        for pid, checks in self._checks.items():
            if checks < _NAME_CHECKS:
                self._checks[pid] = checks + 1
                self._check_name(pid)

    def _check_name(self, pid: int) -> None:
        name = read_text(self._proc / str(pid) / "comm")
        if name is None:  # gone already
            return
        if name.rstrip("\n") in self._names:
            self._named.add(pid)
        else:
            self._named.discard(pid)

    def _process(self, pid: int) -> Process | None:
        status, stat = (read_text(self._proc / str(pid) / name) for name in ("status", "stat"))
        if status is None or stat is None:  # gone between two reads: not running at this moment
            return None
        memory = pairs(status)
        if "VmRSS" not in memory:  # a zombie, waiting to be reaped
            return None
        # the name may hold spaces and brackets: fields are counted from the last bracket (proc(5), stat)
        name, _, rest = stat.partition("(")[2].rpartition(")")
        fields = rest.split()
        return Process(
            pid=pid,
            name=name,
            rss_bytes=memory["VmRSS"],
            swap_bytes=memory.get("VmSwap", 0),
            cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
            threads=memory.get("Threads"),
            started_ns=self._started_ns(pid, int(fields[19])),
        )

    def _started_ns(self, pid: int, ticks: int) -> int:
        """When a process was started, UTC: computed once, so that it stays the same while the clock is set.

        Args:
            pid: number of the process.
            ticks: its start in clock ticks since boot.
        """
        start = self._starts.get(pid)
        if start is None or start[0] != ticks:
            boot_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            self._starts[pid] = start = (ticks, boot_ns + ticks * 1_000_000_000 // _TICKS_PER_S)
        return start[1]


class BuildReader:
    """Reads the manifest beside the binaries again only when it, or the link to it, has changed."""

    def __init__(self, folder: Path) -> None:
        self._manifest = folder / "manifest.json"
        self._file_id: tuple[int, int, int] | None = None
        self._build: Build | None = None

    def read(self) -> Build | None:
        """The build behind the folder now; None where none is installed."""
        try:
            status = self._manifest.stat()
            file_id = (status.st_dev, status.st_ino, status.st_mtime_ns)
            if file_id != self._file_id:
                self._build = parse_manifest(self._manifest.read_bytes())
                self._file_id = file_id
        except OSError:
            self._file_id = self._build = None
        return self._build


def parse_manifest(data: bytes) -> Build:
    """The build that a manifest describes; one that is not JSON still has its own hash."""
    try:
        manifest = json.loads(data)
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict):
        return Build(build=None, commit=None, sha256=hashlib.sha256(data).hexdigest())
    text = json.dumps({key: manifest.get(key) for key in _HASHED}, sort_keys=True)
    return Build(
        build=_as(int, manifest.get("build")),
        commit=_as(str, manifest.get("commit")),
        sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def _as(kind: type, value: Any) -> Any:
    return value if isinstance(value, kind) else None
