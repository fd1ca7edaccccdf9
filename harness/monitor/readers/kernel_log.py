"""Reads the kernel's log: processes killed for memory, and errors of NVIDIA's driver.

The log is /dev/kmsg (its format: the kernel's ABI/testing/dev-kmsg), or the same device passed as standard
input, so that the monitor needs no privilege. A lab node shares its host's kernel: its log is a file into
which the lab copies the records about that machine.
"""

import os
import re
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from harness.monitor.common import WARNING, log
from harness.monitor.sample import Kernel, Xid

XIDS_KEPT = 8

_KMSG = os.makedev(1, 11)
"""Numbers of the device /dev/kmsg."""
_CHUNK = 8192
"""More than one record of /dev/kmsg ever has; a smaller read would be refused."""
_RECORDS_AT_ONCE = 5000
"""Read for one sample at most: what is left comes with the next."""
_LINE_MAX = 400
_OOM = re.compile(r"\bKilled process \d+ \(")
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?(?P<pci>[0-9a-fA-F:.]+)\): (?P<code>\d+)")
_LOST = re.compile(r"NVRM: The NVIDIA GPU (?P<pci>[0-9a-fA-F:.]+).*fallen off the bus")
"""The driver's line for a board that is lost before its setup; it has no Xid number."""
_XID_FALLEN_OFF = 79
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")


class KernelLog:
    """Follows the log from its oldest record on; keeps the last OOM kill and the last Xids."""

    def __init__(self, source: Path | int) -> None:
        """Open the log; where that fails, log the reason once and work without it.

        Args:
            source: a device or file, or the number of an open descriptor.
        """
        self._fd = _open(source)
        self._rest = b""
        self._last_oom: tuple[str, int] | tuple[None, None] = (None, None)
        self._xids: deque[Xid] = deque(maxlen=XIDS_KEPT)

    def read(self, oom_kills: int | None) -> Kernel:
        """The records so far.

        Args:
            oom_kills: the kernel's own counter, which needs no log.
        """
        if self._fd is not None:
            booted_ns = time.time_ns() - time.monotonic_ns()
            for record in filter(None, map(parse_record, self._records(self._fd))):
                self._add(*record, booted_ns)
        line, time_ns = self._last_oom
        has_log, xids = self._fd is not None, list(self._xids)
        return Kernel(log=has_log, oom_kills=oom_kills, last_oom=line, last_oom_ns=time_ns, xids=xids)

    def _add(self, microseconds: int, message: str, booted_ns: int) -> None:
        time_ns, line = booted_ns + microseconds * 1000, message[:_LINE_MAX]
        if _OOM.search(message):
            self._last_oom = (line, time_ns)
        elif xid := parse_xid(message):
            self._xids.append(Xid(time_ns=time_ns, pci=xid[0], code=xid[1], line=line))

    def _records(self, fd: int) -> Iterator[str]:
        for _ in range(_RECORDS_AT_ONCE):
            try:
                chunk = os.read(fd, _CHUNK)
            except BlockingIOError:
                return
            except BrokenPipeError:  # the oldest records were overwritten before they were read
                continue
            if not chunk:  # the end of a file, for now
                return
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)


def parse_record(record: str) -> tuple[int, str] | None:
    """Microseconds since boot and the message; None for a line that continues a record or is none.

    Args:
        record: ``priority,sequence,microseconds,flags;message``.
    """
    head, separator, message = record.partition(";")
    fields = head.split(",")
    if not separator or record.startswith(" ") or len(fields) < 4 or not fields[2].isdigit():
        return None
    return int(fields[2]), _ESCAPED.sub(lambda escaped: chr(int(escaped[1], 16)), message).replace("\n", " ")


def parse_xid(message: str) -> tuple[str, int] | None:
    """PCI address and number of the error that NVIDIA's driver reports, if the message is one."""
    if match := _XID.search(message):
        return match["pci"], int(match["code"])
    if match := _LOST.search(message):
        return match["pci"], _XID_FALLEN_OFF
    return None


def _open(source: Path | int) -> int | None:
    try:
        if isinstance(source, Path):
            return os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if os.fstat(source).st_rdev == _KMSG:
            os.set_blocking(source, False)
            return source
        reason = "standard input is not /dev/kmsg"
    except OSError as error:
        reason = error.strerror or str(error)
    log("kernel_log_unreadable", level=WARNING, source=source, error=reason)
    return None
