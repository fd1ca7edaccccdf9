"""What the kernel's log says of this node: processes killed for memory, and errors of NVIDIA's driver.

The log is read from /dev/kmsg (its format: the kernel's ABI/testing/dev-kmsg), or from the same device handed
over as standard input, so that the monitor needs no privilege. A lab node shares its host's kernel: there
it is a file into which the lab copies the records about that machine.
"""

import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

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
"""How the driver says it of a board that is gone before it was set up: that line has no Xid number."""
_XID_FALLEN_OFF = 79
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")


class KernelLog:
    """Follows the log from its oldest record on, and keeps what matters."""

    def __init__(self, source: Path | int | None) -> None:
        """Open the log; where that fails, say why once and go on without.

        Args:
            source: a device or file, the number of an open descriptor, or None for no log at all.
        """
        self._fd = _open(source)
        self._rest = b""
        self._last_oom: tuple[str, int] | None = None
        self._xids: deque[Xid] = deque(maxlen=XIDS_KEPT)

    def read(self, oom_kills: int | None) -> Kernel:
        """What is known now.

        Args:
            oom_kills: the kernel's own counter, which needs no log.
        """
        if self._fd is not None:
            since_boot_ns = time.time_ns() - time.monotonic_ns()
            for record in self._records(self._fd):
                self._take(record, since_boot_ns)
        line, time_ns = self._last_oom or (None, None)
        return Kernel(
            log=self._fd is not None,
            oom_kills=oom_kills,
            last_oom=line,
            last_oom_ns=time_ns,
            xids=list(self._xids),
        )

    def _take(self, record: str, since_boot_ns: int) -> None:
        parsed = parse_record(record)
        if parsed is None:
            return
        microseconds, message = parsed
        time_ns = since_boot_ns + microseconds * 1000
        if _OOM.search(message):
            self._last_oom = (message[:_LINE_MAX], time_ns)
        elif (xid := parse_xid(message)) is not None:
            pci, code = xid
            self._xids.append(Xid(time_ns=time_ns, pci=pci, code=code, line=message[:_LINE_MAX]))

    def _records(self, fd: int) -> Iterator[str]:
        for _ in range(_RECORDS_AT_ONCE):
            try:
                chunk = os.read(fd, _CHUNK)
            except BlockingIOError:
                return
            except (
                BrokenPipeError
            ):  # the oldest were overwritten before they were read: go on with what is there
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
    head, found, message = record.partition(";")
    fields = head.split(",")
    if not found or record.startswith(" ") or len(fields) < 4 or not fields[2].isdigit():
        return None
    return int(fields[2]), _ESCAPED.sub(lambda escaped: chr(int(escaped[1], 16)), message).replace("\n", " ")


def parse_xid(message: str) -> tuple[str, int] | None:
    """PCI address and number of the error that NVIDIA's driver reports, if the message is one."""
    if found := _XID.search(message):
        return found["pci"], int(found["code"])
    if found := _LOST.search(message):
        return found["pci"], _XID_FALLEN_OFF
    return None


def _open(source: Path | int | None) -> int | None:
    if source is None:
        return None
    try:
        if isinstance(source, Path):
            return os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if os.fstat(source).st_rdev == _KMSG:
            os.set_blocking(source, False)
            return source
        reason = "standard input is not /dev/kmsg"
    except OSError as error:
        reason = error.strerror or str(error)
    print(f"the kernel's log cannot be read: {source}: {reason}", file=sys.stderr, flush=True)
    return None
