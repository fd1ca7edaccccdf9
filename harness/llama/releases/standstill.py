"""What processes do while nothing comes of them, from /proc: whether they wait for each other.

A hang and a slow machine look alike from outside. Here they do not: where something goes on, some thread uses
processor time, or is about to (R), or waits for a disk (D).
"""

import os
import platform
import socket
import struct
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

_PROC = Path("/proc")
_STATES = {"01": "ESTABLISHED", "04": "FIN_WAIT1", "05": "FIN_WAIT2", "08": "CLOSE_WAIT", "0A": "LISTEN"}
_CALLS = {
    "x86_64": {
        "0": "read",
        "7": "poll",
        "43": "accept",
        "44": "sendto",
        "45": "recvfrom",
        "202": "futex",
        "230": "clock_nanosleep",
        "288": "accept4",
    }
}
"""System calls in which a thread waits, by the machine's own numbers; others are told by number."""
_NOTHING = 0.02
"""Share of one processor below which nothing goes on: what looking itself and timers cost."""


class _Seen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ThreadSeen(_Seen):
    """One thread."""

    name: str
    state: str
    """As in ``/proc/PID/stat``: R, S, D, T (stopped)."""
    waits_in: str
    """System call and function of the kernel, as far as this user may know."""
    at_work: bool
    """Whether it ran, was about to, or waited for a disk both at the start and at the end of the look."""
    main: bool


class ProcessSeen(_Seen):
    """One process; without threads where it has ended."""

    name: str
    pid: int
    used_s: float
    """Processor time within the look's window."""
    threads: tuple[ThreadSeen, ...]


class SocketSeen(_Seen):
    """One end of a connection, or a listener."""

    local: str
    peer: str
    state: str
    unread_bytes: int
    """Of a listener: connections that wait to be accepted."""
    unsent_bytes: int
    """Sent and not yet acknowledged by the peer's kernel, or not sent yet."""


class Look(_Seen):
    """What was seen within one window."""

    window_s: float
    processes: tuple[ProcessSeen, ...]
    sockets: tuple[SocketSeen, ...]

    @property
    def used_s(self) -> float:
        """Processor time of all of them together."""
        return sum(process.used_s for process in self.processes)

    @property
    def standstill(self) -> bool:
        """Whether all of them still run and wait for each other, and for nothing else."""
        running = all(process.threads for process in self.processes)
        at_work = any(thread.at_work for process in self.processes for thread in process.threads)
        return running and not at_work and self.used_s <= _NOTHING * self.window_s

    def lines(self) -> list[str]:
        """The same for people."""
        found = []
        for process in self.processes:
            seen = ", ".join(_counted(process.threads)) or "has ended"
            found.append(f"{process.name} (pid {process.pid}): {process.used_s:.2f} CPU s; {seen}")
        for one in self.sockets:
            queues = (
                f"{one.unread_bytes} waiting"
                if one.state == "LISTEN"
                else f"{one.unread_bytes} bytes unread, {one.unsent_bytes} unsent"
            )
            found.append(f"{one.local} - {one.peer} {one.state}: {queues}")
        return found


def look_at(processes: Mapping[int, str], ports: Collection[int], window_s: float) -> Look:
    """Look at processes twice, ``window_s`` seconds apart, and at the sockets of some ports in between.

    Args:
        processes: what each is to be called, by its pid.
    """
    before = {pid: (_threads(pid), _cpu_s(pid)) for pid in processes}
    time.sleep(window_s)
    seen = tuple(_process(pid, name, *before[pid]) for pid, name in processes.items())
    return Look(
        window_s=window_s, processes=seen, sockets=read_sockets((_PROC / "net" / "tcp").read_text(), ports)
    )


_Threads = dict[int, tuple[str, str]]
"""Name and state of each thread."""


def _threads(pid: int) -> _Threads:
    found: _Threads = {}
    try:
        tasks = list((_PROC / str(pid) / "task").iterdir())
    except OSError:
        return found
    for task in tasks:
        name, fields = _stat(task)
        if fields and fields[0] not in "ZX":
            found[int(task.name)] = (name, fields[0])
    return found


def _stat(folder: Path) -> tuple[str, list[str]]:
    """Name and fields from the state on; the name may hold spaces and brackets (proc(5), stat)."""
    name, _, rest = _text(folder / "stat").partition("(")[2].rpartition(")")
    return name, rest.split()


def _cpu_s(pid: int) -> float:
    """Processor time of a process, threads that have ended included; 0 once it is gone."""
    _, fields = _stat(_PROC / str(pid))
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _process(pid: int, called: str, before: _Threads, used_before_s: float) -> ProcessSeen:
    threads = tuple(
        ThreadSeen(
            name=name,
            state=state,
            waits_in=_waits_in(_PROC / str(pid) / "task" / str(number)),
            at_work=state in "RD" and number in before and before[number][1] in "RD",
            main=number == pid,
        )
        for number, (name, state) in sorted(_threads(pid).items())
    )
    used_s = max(0.0, _cpu_s(pid) - used_before_s)
    return ProcessSeen(name=called, pid=pid, used_s=used_s, threads=threads)


def _waits_in(task: Path) -> str:
    number = (_text(task / "syscall").split() or [""])[0]
    known = _CALLS.get(platform.machine(), {})
    call = known.get(number, f"system call {number}" if number.isdigit() else number)
    place = _text(task / "wchan")
    if place in ("", "0"):  # some kernels tell only root, and in another file
        place = _text(task / "stack").partition("\n")[0].partition("] ")[2].partition("+")[0]
    return f"{call} ({place})" if call and place else call or place


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # gone already, or not for this user
        return ""


def _counted(threads: tuple[ThreadSeen, ...]) -> list[str]:
    """Threads that do the same, told once."""
    counts: dict[str, int] = {}
    for one in threads:
        told = f"{'main thread' if one.main else one.name} {one.state} {one.waits_in}".rstrip()
        counts[told] = counts.get(told, 0) + 1
    return [f"{count} x {told}" if count > 1 else told for told, count in counts.items()]


def read_sockets(table: str, ports: Collection[int]) -> tuple[SocketSeen, ...]:
    """Rows of /proc/net/tcp with one of the ports at either end."""
    found = []
    for line in table.splitlines()[1:]:
        _, local, remote, state, queues, *_ = line.split()
        if state in _STATES and not {_port(local), _port(remote)}.isdisjoint(ports):
            unsent, unread = (int(part, 16) for part in queues.split(":"))
            ends = {"local": _readable(local), "peer": _readable(remote)}
            found.append(SocketSeen(**ends, state=_STATES[state], unread_bytes=unread, unsent_bytes=unsent))
    return tuple(found)


def _port(endpoint: str) -> int:
    return int(endpoint.partition(":")[2], 16)


def _readable(endpoint: str) -> str:
    address = socket.inet_ntoa(struct.pack("=I", int(endpoint.partition(":")[0], 16)))
    return f"{address}:{_port(endpoint)}"
