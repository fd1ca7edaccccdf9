"""States of systemd units, without the cost of asking systemd every second.

One ``systemctl show`` for all units costs about ten milliseconds of CPU: it runs every few seconds, and
at once when something says that a state may have changed. A node that is thrashing may take long
to answer: the sample never waits for it, and carries the last known state instead.
"""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.monitor.readers.memory import PROC
from harness.monitor.sample import Unit

PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,MainPID,NRestarts,Result,"
    "ExecMainCode,ExecMainStatus,ExecMainExitTimestamp"
)
SYSTEMCTL = ("systemctl", "show", "--timestamp=us+utc", f"--property={PROPERTIES}", "--")

_EVERY_S = 5.0
_WAIT_S = 0.25
"""Longest a sample waits for the answer; a later sample takes it otherwise."""
_GIVE_UP_S = 30.0
_CLD = {"1": "exited", "2": "killed", "3": "dumped"}
"""How a child ended, as waitid(2) numbers it: CLD_EXITED, CLD_KILLED, CLD_DUMPED."""
_SETTLED = frozenset({"active", "inactive", "failed"})


def parse_show(text: str) -> dict[str, Unit]:
    """Units by name, from the blocks that ``systemctl show`` prints; unknown units are left out."""
    found = {}
    for block in text.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if values.get("LoadState", "not-found") != "not-found":
            found[values["Id"]] = Unit(
                active=values["ActiveState"],
                sub=values["SubState"],
                main_pid=int(values.get("MainPID") or 0),
                restarts=int(values.get("NRestarts") or 0),
                result=values.get("Result", ""),
                **_last_exit(values),
            )
    return found


def _last_exit(values: dict[str, str]) -> dict[str, Any]:
    code = _CLD.get(values.get("ExecMainCode", ""))
    if code is None:  # it has never run, or runs now: systemd forgets the last end when it starts it again
        return {}
    return {
        "exit_code": code,
        "exit_status": int(values.get("ExecMainStatus") or 0),
        "exited_ns": _time_ns(values.get("ExecMainExitTimestamp", "")),
    }


def _time_ns(text: str) -> int | None:
    """Nanoseconds of ``Wed 2026-11-25 14:57:06.123456 UTC``; None for anything else (``n/a``)."""
    try:
        moment = datetime.fromisoformat("T".join(text.split()[1:3]) + "+00:00")
    except ValueError:
        return None
    return (int(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond) * 1000


def keep_last_exits(before: dict[str, Unit], now: dict[str, Unit]) -> dict[str, Unit]:
    """States now, with the last end that was seen of each unit that runs again."""
    return {
        name: unit.model_copy(
            update={
                "exit_code": last.exit_code,
                "exit_status": last.exit_status,
                "exited_ns": last.exited_ns,
            }
        )
        if unit.exit_code is None and (last := before.get(name)) is not None
        else unit
        for name, unit in now.items()
    }


class UnitStates:
    """The last known state of each unit, asked for again when it is due."""

    def __init__(self, units: Sequence[str], command: Sequence[str] = SYSTEMCTL, proc: Path = PROC) -> None:
        self._units = units
        self._command = [*command, *units]
        self._proc = proc
        self._states: dict[str, Unit] = {}
        self._pids: frozenset[int] = frozenset()
        self._asked_at: float | None = None
        self._running: subprocess.Popen[str] | None = None
        self._complained = False

    def read(self, now_s: float, pids: Iterable[int]) -> dict[str, Unit]:
        """States by unit name.

        Args:
            now_s: monotonic clock, seconds.
            pids: numbers of the llama.cpp processes: a change among them means that a unit changed.
        """
        current = frozenset(pids)
        if self._units and self._running is None and self._is_due(now_s, current):
            self._ask(now_s)
        self._pids = current
        if self._running is not None:
            self._collect(self._running, now_s)
        return self._states

    def _is_due(self, now_s: float, pids: frozenset[int]) -> bool:
        if self._asked_at is None or now_s - self._asked_at >= _EVERY_S or pids != self._pids:
            return True
        return any(
            unit.active not in _SETTLED or (unit.main_pid and not (self._proc / str(unit.main_pid)).exists())
            for unit in self._states.values()
        )

    def _ask(self, now_s: float) -> None:
        self._asked_at = now_s
        try:
            self._running = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            self._fail(str(error))

    def _collect(self, running: subprocess.Popen[str], now_s: float) -> None:
        try:
            output, errors = running.communicate(timeout=_WAIT_S)
        except subprocess.TimeoutExpired:
            if self._asked_at is not None and now_s - self._asked_at > _GIVE_UP_S:
                running.kill()  # reaped by the next read
            return
        self._running = None
        if running.returncode == 0:
            self._states = keep_last_exits(self._states, parse_show(output))
            self._complained = False
        else:
            self._fail(errors.strip() or f"exit {running.returncode}")

    def _fail(self, reason: str) -> None:
        self._states = {}
        if not self._complained:
            print(f"unit states are unknown: {self._command[0]}: {reason}", file=sys.stderr, flush=True)
            self._complained = True
