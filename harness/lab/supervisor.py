"""Keeps one machine up: boots it, boots it again when it reboots, and cleans up when it is stopped.

Runs detached from its parent, in its own mount namespace. Machines share this computer's kernel, and its log
is hidden inside: the supervisor copies the records about its machine into a file that the machine sees.
"""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

from harness.errors import HarnessError
from harness.lab import link
from harness.lab.cgroup import Groups
from harness.lab.machine import Machine, apply_limits, close_connections
from harness.lab.spec import parse_spec
from harness.lab.system import run, succeeds, take_lock, write_if_changed

REBOOT = 133
"""What systemd-nspawn exits with when the system inside reboots."""

LOCK_WITHIN_S = 2.0
"""Another supervisor holds the lock for as long as it lives; ``Machine.supervisor`` holds it for a moment."""

_CHUNK = 8192
_OOM_KILL = re.compile(r";oom-kill:.*\btask_memcg=(?P<group>[^,]+),task=.*,pid=(?P<pid>\d+),uid=\d+")
_KILLED = re.compile(r"\bKilled process (?P<pid>\d+) \(")
_FAILURES_ALLOWED = 5
_FAILURE_WINDOW_S = 60.0


def supervise(machine: Machine) -> None:
    """Boot the machine until it is switched off from inside.

    Raises:
        HarnessError: the machine fails as soon as it is started.
    """
    groups = Groups()
    groups.create(machine.supervisor_group)
    groups.enter(machine.supervisor_group)
    kernel_log = _open_kernel_log()
    failures: deque[float] = deque(maxlen=_FAILURES_ALLOWED)
    boots = 0
    while True:
        boots += 1
        status = _boot_once(machine, groups, boots, kernel_log)
        _log(f"boot {boots} ended with {status}")
        if status == 0:
            return _note(machine, "off", boots)
        if status != REBOOT:
            failures.append(time.monotonic())
            if len(failures) == _FAILURES_ALLOWED and failures[-1] - failures[0] < _FAILURE_WINDOW_S:
                _note(machine, "failed", boots)
                raise HarnessError(
                    f"{machine.name} failed {_FAILURES_ALLOWED} times within {_FAILURE_WINDOW_S:.0f} s"
                )
            time.sleep(0.5)


def _boot_once(machine: Machine, groups: Groups, boots: int, kernel_log: int | None) -> int:
    """One boot of the system inside: new group, cable and namespace, as after a power cycle.

    Returns:
        Exit status of systemd-nspawn.
    """
    _note(machine, "booting", boots)
    spec, image = machine.read()
    groups.remove(machine.group)
    link.unplug(machine.lab, machine.name)
    close_connections(machine.lab, str(spec.address))
    groups.create(machine.group)
    apply_limits(machine)
    write_if_changed(machine.folder / "swap_bytes", f"{machine.lab.swap}\n")
    machine.kernel_log.write_text("")
    namespace = machine.folder / "netns"
    _fresh_namespace(namespace)
    link.plug(machine.lab, spec, namespace)
    command = _boot_command(machine, namespace, _mount(machine.folder, image), groups)
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
        late = threading.Timer(spec.address_delay_s, link.add_addresses, (machine.lab, spec, namespace))
        late.daemon = True
        if spec.address_delay_s:
            late.start()
        try:
            return wait_and_copy(process, kernel_log, machine.group, machine.kernel_log)
        finally:
            late.cancel()
            groups.remove(machine.group)
            process.wait()


def _mount(folder: Path, image: Path) -> Path:
    root = folder / "root"
    succeeds("umount", "--lazy", root)
    layers = f"lowerdir={image},upperdir={folder / 'upper'},workdir={folder / 'work'}"
    run("mount", "-t", "overlay", "overlay", "-o", layers, root)
    return root


def _boot_command(machine: Machine, namespace: Path, image_root: Path, groups: Groups) -> list[str]:
    """Command line of the booted machine; it dies with the process that starts it."""
    inside = Path("/run/llama-lab")
    return [
        # nspawn mounts /sys before it joins the machine's network: start it there, or /sys/class/net is
        # the host's.
        *("nsenter", f"--net={namespace}"),
        *("setpriv", "--pdeathsig", "KILL"),
        *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--settings=no"),
        *("--console=read-only", "--link-journal=no", "--resolv-conf=off", "--timezone=off"),
        f"--directory={image_root}",
        f"--machine={machine.nspawn_name}",
        f"--hostname={machine.name}",
        f"--network-namespace-path={namespace}",
        "--capability=CAP_NET_ADMIN",
        "--rlimit=NOFILE=1024:524288",
        # systemd's IPAddressDeny= loads BPF programs; nspawn's own filter would not let it.
        "--system-call-filter=bpf",
        f"--bind-ro={machine.lab.models}:/srv/llama-models",
        f"--bind-ro={groups.folder('memory', machine.group)}:{inside}/cgroup",
        f"--bind-ro={groups.folder('cpuacct', machine.group)}:{inside}/cgroup-cpu",
        f"--bind-ro={machine.folder / 'swap_bytes'}:{inside}/swap_bytes",
        f"--bind-ro={machine.kernel_log}:{inside}/kernel.log",
        *([f"--bind-ro={disks}:{inside}/cgroup-io"] if (disks := groups.count_disks(machine.group)) else []),
    ]


def _fresh_namespace(path: Path) -> None:
    """A new, empty network namespace held by the file ``path``."""
    succeeds("umount", "--lazy", path)
    path.touch()
    run("unshare", f"--net={path}", "true")


class OomRecords:
    """The records of the kernel's log about processes of one control group that were killed for memory."""

    def __init__(self, group: Path) -> None:
        self._group = f"/{group}"
        self._pids: set[str] = set()

    def ours(self, record: str) -> bool:
        """Whether a record is about the group: the choice of a process (``oom-kill:``), then its kill."""
        if match := _OOM_KILL.search(record):
            if match["group"] == self._group or match["group"].startswith(f"{self._group}/"):
                self._pids.add(match["pid"])
                return True
        elif (match := _KILLED.search(record)) and match["pid"] in self._pids:
            self._pids.discard(match["pid"])
            return True
        return False


def _open_kernel_log() -> int | None:
    """The host's log, from now on; None where it cannot be read."""
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(log, 0, os.SEEK_END)
    except OSError:
        return None
    return log


def wait_and_copy(process: subprocess.Popen[bytes], log: int | None, group: Path, target: Path) -> int:
    """Exit status of a process, once it ends; until then copies records of ``group`` to ``target``."""
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
    with contextlib.suppress(BlockingIOError), target.open("a") as file:
        while True:
            try:
                record = os.read(log, _CHUNK).decode(errors="replace").partition("\n")[0]
            except BrokenPipeError:  # overwritten before it was read
                continue
            if records.ours(record):
                file.write(f"{record}\n")


def _note(machine: Machine, state: str, boots: int) -> None:
    write_if_changed(machine.state_file, json.dumps({"state": state, "boots": boots, "since": time.time()}))


def _log(message: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {message}", flush=True)


def main() -> int:
    """Entry point: ``python -m harness.lab.supervisor LAB.json MACHINE``."""
    machine = Machine(parse_spec(Path(sys.argv[1]).read_text()), sys.argv[2])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with machine.lock.open("a+") as lock:
        if not take_lock(lock, LOCK_WITHIN_S):
            _log("another supervisor keeps this machine")
            return 1
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            supervise(machine)
        except HarnessError as error:
            _log(str(error))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
