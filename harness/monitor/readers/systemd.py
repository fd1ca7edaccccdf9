"""States of systemd units, without a query of systemd every second.

One ``systemctl show`` for all units costs about ten milliseconds of CPU: it runs every few seconds, and
at once when a process or a state suggests a change. On a node that is thrashing it may take long: the
sample does not wait for it, and carries the last known state instead.
"""

import subprocess
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from subprocess import DEVNULL, PIPE

from harness.monitor.common import WARNING, log
from harness.monitor.readers import PROC
from harness.monitor.sample import Unit

_PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,MainPID,NRestarts,Result,"
    "ExecMainCode,ExecMainStatus,ExecMainExitTimestamp"
)
SYSTEMCTL = ("systemctl", "show", "--timestamp=us+utc", f"--property={_PROPERTIES}", "--")

_EVERY_S = 5.0
_WAIT_S = 0.25
"""Longest a sample waits for the answer; a later sample takes it otherwise."""
_GIVE_UP_S = 30.0
_CLD = {"1": "exited", "2": "killed", "3": "dumped"}
"""How a child ended, as waitid(2) numbers it: CLD_EXITED, CLD_KILLED, CLD_DUMPED."""
_LAST_EXIT = {"exit_code", "exit_status", "exited_ns"}
_SETTLED = frozenset({"active", "inactive", "failed"})


def parse_show(text: str) -> dict[str, Unit]:
    """Units by name, from the blocks that ``systemctl show`` prints; unknown units are left out."""
    units = {}
    for block in text.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if values.get("LoadState", "not-found") != "not-found":
            units[values["Id"]] = unit = Unit(
                active=values["ActiveState"],
                sub=values["SubState"],
                main_pid=int(values.get("MainPID") or 0),
                restarts=int(values.get("NRestarts") or 0),
                result=values.get("Result", ""),
            )
            code = _CLD.get(values.get("ExecMainCode", ""))
            if code:  # else it never ran, or runs now: systemd forgets the last exit when it starts it again
                unit.exit_code = code
                unit.exit_status = int(values.get("ExecMainStatus") or 0)
                unit.exited_ns = _time_ns(values.get("ExecMainExitTimestamp", ""))
    return units


def _time_ns(text: str) -> int | None:
    """Nanoseconds of ``Wed 2026-11-25 14:57:06.123456 UTC``; None for anything else (``n/a``)."""
    try:
        moment = datetime.fromisoformat("T".join(text.split()[1:3]) + "+00:00")
    except ValueError:
        return None
    return (int(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond) * 1000


def keep_last_exits(before: dict[str, Unit], now: dict[str, Unit]) -> dict[str, Unit]:
    """States now; a unit that runs again keeps its last exit, which systemd has forgotten."""
    return {
        name: unit.model_copy(update=before[name].model_dump(include=_LAST_EXIT))
        if unit.exit_code is None and name in before
        else unit
        for name, unit in now.items()
    }


class UnitStates:
    """The last known state of each unit; queries systemd again when that is due."""

    def __init__(self, units: Sequence[str], command: Sequence[str] = SYSTEMCTL, proc: Path = PROC) -> None:
        self._units = units
        self._command = [*command, *units]
        self._proc = proc
        self._states: dict[str, Unit] = {}
        self._pids: frozenset[int] = frozenset()
        self._queried_at: float | None = None
        self._running: subprocess.Popen[str] | None = None
        self._logged = False

    def read(self, now_s: float, pids: Iterable[int]) -> dict[str, Unit]:
        """States by unit name.

        Args:
            now_s: monotonic clock, seconds.
            pids: numbers of the llama.cpp processes: a change among them means that a unit changed.
        """
        current = frozenset(pids)
        if self._units and self._running is None and self._is_due(now_s, current):
            self._query(now_s)
        self._pids = current
        if self._running is not None:
            self._collect(self._running, now_s)
        return self._states

    def _is_due(self, now_s: float, pids: frozenset[int]) -> bool:
        if self._queried_at is None or now_s - self._queried_at >= _EVERY_S or pids != self._pids:
            return True
        return any(
            unit.active not in _SETTLED or (unit.main_pid and not (self._proc / str(unit.main_pid)).exists())
            for unit in self._states.values()
        )

    def _query(self, now_s: float) -> None:
        self._queried_at = now_s
        try:
            self._running = subprocess.Popen(
                self._command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, text=True
            )
        except OSError as error:
            self._fail(str(error))

    def _collect(self, running: subprocess.Popen[str], now_s: float) -> None:
        try:
            output, errors = running.communicate(timeout=_WAIT_S)
        except subprocess.TimeoutExpired:
            if self._queried_at is not None and now_s - self._queried_at > _GIVE_UP_S:
                running.kill()  # reaped by the next read
            return
        self._running = None
        if running.returncode == 0:
            self._states = keep_last_exits(self._states, parse_show(output))
            self._logged = False
        else:
            self._fail(errors.strip() or f"exit {running.returncode}")

    def _fail(self, error: str) -> None:
        self._states = {}
        if not self._logged:
            log("unit_states_unknown", level=WARNING, command=self._command[0], error=error)
            self._logged = True
