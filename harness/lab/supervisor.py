"""Keeps one machine up: boots it, boots it again when it reboots, and leaves nothing when told to end.

Runs detached from whoever started it, in a mount namespace of its own.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from types import FrameType

from harness.errors import HarnessError
from harness.lab import link
from harness.lab.cgroup import Groups
from harness.lab.kernel import open_log, wait_and_copy
from harness.lab.machine import Machine, apply_limits, boot_command, fresh_namespace
from harness.lab.reach import close_connections
from harness.lab.shell import run, succeeds, write_atomically
from harness.lab.spec import parse_spec

REBOOT = 133
"""What systemd-nspawn exits with when the system inside asked to be booted again."""

_FAILURES_ALLOWED = 5
_FAILURE_WINDOW_S = 60.0


class GiveUp(Exception):
    """The machine fails as soon as it is started."""


def supervise(machine: Machine) -> None:
    """Boot the machine until it is switched off from inside."""
    groups = Groups()
    groups.create(machine.supervisor_group)
    groups.enter(machine.supervisor_group)
    kernel_log = open_log()
    failures: deque[float] = deque(maxlen=_FAILURES_ALLOWED)
    boots = 0
    while True:
        boots += 1
        status = _boot_once(machine, groups, boots, kernel_log)
        _say(f"boot {boots} ended with {status}")
        if status == 0:
            return _note(machine, "off", boots)
        if status != REBOOT:
            failures.append(time.monotonic())
            if len(failures) == _FAILURES_ALLOWED and failures[-1] - failures[0] < _FAILURE_WINDOW_S:
                _note(machine, "failed", boots)
                raise GiveUp(
                    f"{machine.name} failed {_FAILURES_ALLOWED} times within {_FAILURE_WINDOW_S:.0f} s"
                )
            time.sleep(0.5)


def _boot_once(machine: Machine, groups: Groups, boots: int, kernel_log: int | None) -> int:
    """One life of the system inside: fresh group, cable and namespace, as after a power cycle."""
    _note(machine, "booting", boots)
    spec, image = machine.read()
    groups.remove(machine.group)
    link.unplug(machine.lab, machine.name)
    close_connections(machine.lab.folder / "ssh", str(spec.address))
    groups.create(machine.group)
    apply_limits(machine)
    write_atomically(machine.folder / "swap_bytes", f"{machine.lab.swap}\n")
    machine.kernel_log.write_text("")
    namespace = machine.folder / "netns"
    fresh_namespace(namespace)
    link.plug(machine.lab, spec, namespace)
    root = _mount(machine, image)
    command = boot_command(machine, namespace, root, groups)
    with (machine.folder / "console.log").open("a") as console:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            # Runs in the child between fork and exec: it alone moves into the machine's group.
            preexec_fn=lambda: groups.enter(machine.group),
            # Nothing else boots from this folder, and a killed nspawn would leave its lock files behind.
            env={**os.environ, "SYSTEMD_NSPAWN_LOCK": "0"},
        )
        _note(machine, "running", boots)
        try:
            return wait_and_copy(process, kernel_log, machine.group, machine.kernel_log)
        finally:
            groups.remove(machine.group)
            process.wait()


def _mount(machine: Machine, image: Path) -> Path:
    folder = machine.folder
    root = folder / "root"
    succeeds("umount", "--lazy", root)
    layers = f"lowerdir={image},upperdir={folder / 'upper'},workdir={folder / 'work'}"
    run("mount", "-t", "overlay", "overlay", "-o", layers, root)
    return root


def _note(machine: Machine, state: str, boots: int) -> None:
    write_atomically(machine.state_file, json.dumps({"state": state, "boots": boots, "since": time.time()}))


def _say(message: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {message}", flush=True)


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> int:
    """Entry point: ``python -m harness.lab.supervisor LAB.json MACHINE``."""
    machine = Machine(parse_spec(Path(sys.argv[1]).read_text()), sys.argv[2])
    signal.signal(signal.SIGTERM, _end)
    with machine.lock.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another supervisor keeps this machine")
            return 1
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            supervise(machine)
        except (HarnessError, GiveUp) as error:
            _say(str(error))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
