"""The node's llama.cpp processes: memory, swap, CPU time, threads and start of each, from /proc/PID."""

import os
import time
from collections.abc import Collection
from pathlib import Path

from harness.monitor.readers.memory import PROC, pairs
from harness.monitor.sample import RPC_SERVERS, Process

LLAMA_CPP_NAMES = (*RPC_SERVERS, "llama-server")

_LOOKS = 3
"""How often a new process is looked at: its name changes when it execs, a moment after it appears."""
_RESCAN = 30
"""Reads after which every process is looked at again, should a number have been used twice."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ProcessTable:
    """Finds processes by name without reading every process each time."""

    def __init__(self, names: Collection[str] = LLAMA_CPP_NAMES, proc: Path = PROC) -> None:
        self._names = frozenset(names)
        self._proc = proc
        self._looks: dict[int, int] = {}
        self._named: set[int] = set()
        self._starts: dict[int, tuple[int, int]] = {}
        self._reads = 0

    def read(self) -> list[Process]:
        """Processes of the given names that run at this moment, by number."""
        self._discover()
        found = (self._process(pid) for pid in sorted(self._named))
        return [process for process in found if process is not None]

    def _discover(self) -> None:
        if self._reads % _RESCAN == 0:
            self._looks.clear()
        self._reads += 1
        with os.scandir(self._proc) as entries:
            present = {int(entry.name) for entry in entries if entry.name.isdigit()}
        self._named &= present
        self._starts = {pid: start for pid, start in self._starts.items() if pid in present}
        self._looks = {pid: looks for pid, looks in self._looks.items() if pid in present}
        for pid in present:
            looks = self._looks.get(pid, 0)
            if looks < _LOOKS:
                self._looks[pid] = looks + 1
                self._look(pid)

    def _look(self, pid: int) -> None:
        try:
            name = (self._proc / str(pid) / "comm").read_text().rstrip("\n")
        except OSError:  # gone already
            return
        if name in self._names:
            self._named.add(pid)
        else:
            self._named.discard(pid)

    def _process(self, pid: int) -> Process | None:
        folder = self._proc / str(pid)
        try:
            status = (folder / "status").read_text()
            stat = (folder / "stat").read_text()
        except OSError:  # gone between two reads: not running at this moment
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
        """When a process was started, UTC.

        Worked out once for each, so that it stays the same while the clock is being set.

        Args:
            pid: number of the process.
            ticks: its start in clock ticks since boot.
        """
        known = self._starts.get(pid)
        if known is None or known[0] != ticks:
            boot_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            self._starts[pid] = known = (ticks, boot_ns + ticks * 1_000_000_000 // _TICKS_PER_S)
        return known[1]
