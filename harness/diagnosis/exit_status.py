"""How a process ended, from a number or word of a shell, subprocess, systemd or Windows."""

import re
import signal

from harness.contracts.diagnosis import ExitStatus
from harness.errors import HarnessError

ABORT, SEGV, ILL = signal.SIGABRT, signal.SIGSEGV, signal.SIGILL
PIPE, KILL, TERM, INT = signal.SIGPIPE, signal.SIGKILL, signal.SIGTERM, signal.SIGINT
BUS, HUP = signal.SIGBUS, signal.SIGHUP

NTSTATUS: dict[int, signal.Signals] = {
    0xC0000005: SEGV,  # access violation
    0xC00000FD: SEGV,  # stack overflow
    0xC0000006: BUS,  # a page of a mapped file could not be read
    0xC000001D: ILL,  # illegal instruction
    0xC0000409: ABORT,  # fast fail, which is how abort() ends since Windows 8
    0xC0000374: ABORT,  # the heap found itself damaged
    0x80000003: ABORT,  # breakpoint: a failed check of a debug build
    0xC000013A: INT,  # Ctrl-C or a closed console
    0x40010004: INT,  # the debugger or the session ended it
}
"""Windows' statuses (ntstatus.h) that mean what a signal means elsewhere."""

NTSTATUS_NO_MEMORY = frozenset({0xC0000017, 0xC000012D, 0xC000009A})
"""STATUS_NO_MEMORY, STATUS_COMMITMENT_LIMIT and STATUS_INSUFFICIENT_RESOURCES."""

_NTSTATUS_FROM = 0x40000000
_SYSTEMD = {"1": "exited", "2": "killed", "3": "dumped"}
_MAIN_EXITED = re.compile(r"[Mm]ain process exited, code=(exited|killed|dumped), status=(\d+)")


def unsigned(code: int) -> int:
    """An exit code as Windows means it: some tools print the 32 bits as a negative number."""
    return code + (1 << 32) if -(1 << 31) <= code < -64 else code


def signal_of(status: ExitStatus) -> int | None:
    """The signal that ended a process, also where a shell (128 + n) or Windows says it; None without one."""
    if status.signal is not None:
        return status.signal
    code = unsigned(status.code) if status.code is not None else 0
    if code in NTSTATUS:
        return int(NTSTATUS[code])
    if -64 <= code < 0:
        return -code
    return code - 128 if 128 < code <= 192 else None


def in_words(status: ExitStatus) -> str:
    """An exit status in words: ``exited with code 1``, ``ended by signal 11 (SIGSEGV), 139 in a shell``."""
    number = signal_of(status)
    if status.signal is not None:
        return f"ended by signal {number} ({_name(number)}), {status.shell} in a shell"
    code = unsigned(status.code) if status.code is not None else None
    if code is not None and code >= _NTSTATUS_FROM:
        meaning = f", as by {_name(number)} elsewhere" if number else ""
        return f"exited with code 0x{code:08X}{meaning}"
    meaning = f", which is signal {number} ({_name(number)})" if number else ""
    return f"exited with code {code}{meaning}"


def parse_exit_status(text: str) -> ExitStatus:
    """An exit status as people and tools write it.

    A code (``1``), a signal as subprocess gives it (``-6``), as a shell does (``134``) or by name
    (``SIGABRT``), and a Windows status (``0xC0000005``, ``3221225477``, ``-1073741819``).

    Raises:
        HarnessError: it is none of these.
    """
    word = text.strip().upper()
    name = word if word.startswith("SIG") else f"SIG{word}"
    if name in signal.Signals.__members__:
        return ExitStatus(time_ns=0, signal=int(signal.Signals[name]))
    try:
        number = unsigned(int(word, 16 if word.startswith("0X") else 10))
    except ValueError:
        number = -1 << 40
    if not -64 <= number < 1 << 32:
        raise HarnessError(
            f"'{text}' is no exit status: give a code (1, 134, -6), a signal (SIGABRT) or 0xC0000005"
        )
    if -64 <= number < 0:
        return ExitStatus(time_ns=0, signal=-number)
    return ExitStatus(time_ns=0, code=number)


def from_unit(properties: dict[str, str]) -> ExitStatus | None:
    """How a unit's main process last ended, from systemd's ``ExecMainCode`` and ``ExecMainStatus``.

    ``systemctl show`` gives the code as a number (waitid's si_code: 1 exited, 2 killed, 3 dumped) and
    D-Bus clients as a word; 0 is a process that has not ended.
    """
    code = properties.get("ExecMainCode", "")
    code = _SYSTEMD.get(code, code)
    status = re.match(r"\d+", properties.get("ExecMainStatus", ""))
    if code not in _SYSTEMD.values() or status is None:
        return None
    number = int(status[0])
    return ExitStatus(time_ns=0, code=number) if code == "exited" else ExitStatus(time_ns=0, signal=number)


def _name(number: int | None) -> str:
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return "unknown"


def from_journal(line: str) -> ExitStatus | None:
    """How a unit's main process ended, from the line that systemd logs of it; None for any other line."""
    match = _MAIN_EXITED.search(line)
    return from_unit({"ExecMainCode": match[1], "ExecMainStatus": match[2]}) if match else None
