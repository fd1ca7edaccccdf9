"""A machine's part of the host's kernel log: which of its processes were killed for memory.

Machines share the host's kernel, and its log is hidden inside. The supervisor copies the records about its
machine's control group into a file that the machine sees.
"""

import contextlib
import os
import re
import select
import subprocess
from pathlib import Path

_KMSG = Path("/dev/kmsg")
_CHUNK = 8192
_OOM_KILL = re.compile(r";oom-kill:.*\btask_memcg=(?P<group>[^,]+),task=.*,pid=(?P<pid>\d+),uid=\d+")
_KILLED = re.compile(r"\bKilled process (?P<pid>\d+) \(")


class OomRecords:
    """Picks the records about one control group out of the kernel's log."""

    def __init__(self, group: Path) -> None:
        self._group = f"/{group}"
        self._pids: set[str] = set()

    def ours(self, record: str) -> bool:
        """Whether a record is about the group: who was chosen (``oom-kill:``), and then how it was killed."""
        if found := _OOM_KILL.search(record):
            if found["group"] == self._group or found["group"].startswith(f"{self._group}/"):
                self._pids.add(found["pid"])
                return True
        elif (found := _KILLED.search(record)) and found["pid"] in self._pids:
            self._pids.discard(found["pid"])
            return True
        return False


def open_log() -> int | None:
    """The host's log, from now on; None where there is none to read."""
    try:
        log = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(log, 0, os.SEEK_END)
    except OSError:
        return None
    return log


def wait_and_copy(process: "subprocess.Popen[bytes]", log: int | None, group: Path, target: Path) -> int:
    """Wait for a process to end; until then copy what the log says of ``group`` to ``target``.

    Returns:
        What the process ended with.
    """
    if log is None:
        return process.wait()
    records = OomRecords(group)
    ended = os.pidfd_open(process.pid)
    try:
        while True:
            ready, _, _ = select.select([ended, log], [], [])
            if log in ready:
                _copy(log, records, target)
            if ended in ready:
                return process.wait()
    finally:
        os.close(ended)


def _copy(log: int, records: OomRecords, target: Path) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            try:
                record = os.read(log, _CHUNK).decode(errors="replace").partition("\n")[0]
            except BrokenPipeError:  # overwritten before it was read
                continue
            if records.ours(record):
                with target.open("a") as file:
                    file.write(f"{record}\n")
