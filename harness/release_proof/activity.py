"""What processes do while they give no result, from /proc: whether they wait for each other.

A hang and a slow machine look alike from outside. Here they do not: on a slow machine some thread uses
processor time, is ready to (R), or waits for a disk (D).
"""

import os
import platform
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from harness.common.sockets import TcpSocket, tcp_sockets
from harness.contracts import Record

_PROC = Path("/proc")
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
"""System calls in which a thread waits, by the machine's own numbers; others are shown by number."""
_OPEN = ("ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSE_WAIT", "LISTEN")
_IDLE_SHARE = 0.02
"""Share of one processor that timers and this observation itself use."""


class ThreadActivity(Record, frozen=True):
    """One thread."""

    name: str
    state: str
    """As in ``/proc/PID/stat``: R, S, D, T (stopped)."""
    waits_in: str
    """System call and function of the kernel, as far as this user may know."""
    at_work: bool
    """Whether it ran, was ready to, or waited for a disk both at the start and at the end of the window."""
    main: bool


class ProcessActivity(Record, frozen=True):
    """One process; without threads where it has ended."""

    name: str
    pid: int
    used_s: float
    """Processor time within the window."""
    threads: tuple[ThreadActivity, ...]


class SocketActivity(Record, frozen=True):
    """One end of a connection, or a listener."""

    local: str
    peer: str
    state: str
    unread_bytes: int
    """Of a listener: connections that wait to be accepted."""
    unsent_bytes: int
    """Sent and not yet acknowledged by the peer's kernel, or not sent yet."""


class Activity(Record, frozen=True):
    """What processes did within one window."""

    window_s: float
    processes: tuple[ProcessActivity, ...]
    sockets: tuple[SocketActivity, ...]

    @property
    def used_s(self) -> float:
        return sum(process.used_s for process in self.processes)

    @property
    def hung(self) -> bool:
        """Whether all of them still run and wait for each other, and for nothing else."""
        running = all(process.threads for process in self.processes)
        at_work = any(thread.at_work for process in self.processes for thread in process.threads)
        return running and not at_work and self.used_s <= _IDLE_SHARE * self.window_s

    def lines(self) -> list[str]:
        lines = []
        for process in self.processes:
            threads = ", ".join(_counted(process.threads)) or "has ended"
            lines.append(f"{process.name} (pid {process.pid}): {process.used_s:.2f} CPU s; {threads}")
        for end in self.sockets:
            queues = f"{end.unread_bytes} bytes unread, {end.unsent_bytes} unsent"
            if end.state == "LISTEN":
                queues = f"{end.unread_bytes} waiting"
            lines.append(f"{end.local} - {end.peer} {end.state}: {queues}")
        return lines


def observe(processes: Mapping[int, str], ports: Collection[int], window_s: float) -> Activity:
    """Read processes twice, ``window_s`` seconds apart, then the sockets of some ports.

    Args:
        processes: a name for each, by its pid.
    """
    before = {pid: (_threads(pid), _cpu_s(pid)) for pid in processes}
    time.sleep(window_s)
    return Activity(
        window_s=window_s,
        processes=tuple(_process(pid, name, *before[pid]) for pid, name in processes.items()),
        sockets=sockets_of(tcp_sockets(), ports),
    )


def sockets_of(rows: Iterable[TcpSocket], ports: Collection[int]) -> tuple[SocketActivity, ...]:
    """Listeners and open connections with one of the ports at either end."""
    return tuple(
        SocketActivity(**{name: getattr(row, name) for name in SocketActivity.model_fields})
        for row in rows
        if row.state in _OPEN and not row.ports.isdisjoint(ports)
    )


_Threads = dict[int, tuple[str, str]]
"""Name and state of each thread."""


def _threads(pid: int) -> _Threads:
    try:
        tasks = {int(task.name): _stat(task) for task in (_PROC / str(pid) / "task").iterdir()}
    except OSError:
        return {}
    return {
        number: (name, fields[0])
        for number, (name, fields) in tasks.items()
        if fields and fields[0] not in "ZX"
    }


def _stat(folder: Path) -> tuple[str, list[str]]:
    """Name and fields from the state on; the name may hold spaces and brackets (proc(5), stat)."""
    name, _, rest = _text(folder / "stat").partition("(")[2].rpartition(")")
    return name, rest.split()


def _cpu_s(pid: int) -> float:
    """Processor time of a process, threads that have ended included; 0 once it is gone."""
    _, fields = _stat(_PROC / str(pid))
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _process(pid: int, label: str, before: _Threads, used_before_s: float) -> ProcessActivity:
    threads = tuple(
        ThreadActivity(
            name=name,
            state=state,
            waits_in=_waits_in(_PROC / str(pid) / "task" / str(number)),
            at_work=state in "RD" and number in before and before[number][1] in "RD",
            main=number == pid,
        )
        for number, (name, state) in sorted(_threads(pid).items())
    )
    used_s = max(0.0, _cpu_s(pid) - used_before_s)
    return ProcessActivity(name=label, pid=pid, used_s=used_s, threads=threads)


def _waits_in(task: Path) -> str:
    number = (_text(task / "syscall").split() or [""])[0]
    names = _CALLS.get(platform.machine(), {})
    call = names.get(number, f"system call {number}" if number.isdigit() else number)
    place = _text(task / "wchan")
    if place in ("", "0"):  # some kernels show it to root only, in another file
        place = _text(task / "stack").partition("\n")[0].partition("] ")[2].partition("+")[0]
    return f"{call} ({place})" if call and place else call or place


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # gone already, or not for this user
        return ""


def _counted(threads: tuple[ThreadActivity, ...]) -> list[str]:
    """Threads that do the same, listed once."""
    counts = Counter(
        f"{'main thread' if thread.main else thread.name} {thread.state} {thread.waits_in}".rstrip()
        for thread in threads
    )
    return [f"{count} x {text}" if count > 1 else text for text, count in counts.items()]
