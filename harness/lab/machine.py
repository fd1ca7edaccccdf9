"""One machine: its folder, how it is booted, and how every trace of it is removed."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from harness.common.text import last_line
from harness.errors import HarnessError
from harness.lab import link
from harness.lab.cgroup import Groups
from harness.lab.image import ADMIN_ID
from harness.lab.spec import LabSpec, MachineSpec
from harness.lab.system import succeeds, write_if_changed

_NSPAWN_RUN = Path("/run/systemd/nspawn")
_REACHABLE_WITHIN_S = 90.0


@dataclass(frozen=True)
class Machine:
    """A machine of a lab, by name; it need not exist."""

    lab: LabSpec
    name: str

    @property
    def folder(self) -> Path:
        return self.lab.folder / "machines" / self.name

    @property
    def record(self) -> Path:
        """What the machine was made from; written last, so it marks a whole machine."""
        return self.folder / "machine.json"

    @property
    def state_file(self) -> Path:
        return self.folder / "state.json"

    @property
    def lock(self) -> Path:
        """Held by the supervisor for as long as it lives; holds its process id."""
        return self.folder / "supervisor.lock"

    @property
    def kernel_log(self) -> Path:
        """What the host's kernel log says of the machine's processes, since it was booted last."""
        return self.folder / "kernel.log"

    @property
    def disk_image(self) -> Path:
        """File of the small disk that ``running.attach_disk`` mounts inside."""
        return self.folder / "disk.img"

    @property
    def group(self) -> Path:
        return self.lab.group / self.name

    @property
    def supervisor_group(self) -> Path:
        return self.lab.group / f"{self.name}.supervisor"

    @property
    def nspawn_name(self) -> str:
        return f"{self.lab.name}-{self.name}"

    def read(self) -> tuple[MachineSpec, Path]:
        """What the machine was made from: its description and its image."""
        record = json.loads(self.record.read_text())
        return MachineSpec.model_validate(record["machine"]), Path(record["image"])

    def supervisor(self) -> int | None:
        """Process id of the living supervisor."""
        if not self.lock.exists():
            return None
        with self.lock.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read() or 0) or None
        return None

    def state(self) -> str:
        """``booting``, ``running``, ``off``, ``failed``, or ``stopped`` (made, but without a supervisor)."""
        supervised = self.supervisor() is not None
        try:
            recorded = str(json.loads(self.state_file.read_text())["state"])
        except (FileNotFoundError, ValueError):
            recorded = "booting"
        return recorded if supervised or recorded in ("off", "failed") else "stopped"


def make(machine: Machine, spec: MachineSpec, image: Path) -> bool:
    """Make the machine's folder as ``spec`` says; returns whether it changed.

    A machine keeps the image it was made from: its own files lie on top of that one.
    """
    if machine.record.exists():
        before, image = machine.read()
        if before == spec:
            return False
        for name in ("address", "suite", "user"):
            if getattr(before, name) != getattr(spec, name):
                raise HarnessError(
                    f"{spec.name}: its {name} is {getattr(before, name)}, and the inventory says "
                    f"{getattr(spec, name)}; take the lab down first"
                )
    else:
        remove(machine)
        _seed(machine, spec)
    text = json.dumps({"machine": spec.model_dump(mode="json"), "image": str(image)})
    return write_if_changed(machine.record, text)


def _seed(machine: Machine, spec: MachineSpec) -> None:
    """Write what differs between machines: name, neighbours, who may log in, host key."""
    upper = machine.folder / "upper"
    home = Path("root" if spec.user == "root" else f"home/{spec.user}")
    for folder in ("work", "root", "upper/etc/ssh", f"upper/{home}/.ssh"):
        (machine.folder / folder).mkdir(parents=True, exist_ok=True)
    lab = machine.lab
    neighbours = "".join(f"{other.address} {other.name}\n" for other in lab.machines)
    write_if_changed(upper / "etc/hostname", f"{spec.name}\n")
    write_if_changed(upper / "etc/hosts", f"127.0.0.1 localhost\n{neighbours}")
    public = (lab.folder / "ssh/id_ed25519.pub").read_text()
    write_if_changed(upper / home / ".ssh/authorized_keys", public, 0o600)
    owner = 0 if spec.user == "root" else ADMIN_ID
    for path in (upper / home, upper / home / ".ssh", upper / home / ".ssh/authorized_keys"):
        os.chown(path, owner, owner)
        path.chmod(0o600 if path.is_file() else 0o700)
    for key in (lab.folder / "ssh/hosts" / spec.name).iterdir():
        write_if_changed(upper / "etc/ssh" / key.name, key.read_text(), key.stat().st_mode & 0o777)


def apply_limits(machine: Machine) -> None:
    """Apply the recorded memory and CPU limits."""
    spec, _ = machine.read()
    Groups().limit(machine.group, spec.memory, machine.lab.swap, spec.cpu)


def start(machine: Machine) -> bool:
    """Start a supervisor that keeps the machine up; returns whether there was none."""
    if machine.supervisor() is not None:
        return False
    sweep(machine)
    machine.state_file.unlink(missing_ok=True)
    log = machine.folder / "supervisor.log"
    with log.open("a") as output:
        process = subprocess.Popen(
            # In its own mount namespace: the mounts end with it, however it ends.
            ["unshare", "--mount", "--propagation", "slave", sys.executable, "-m", "harness.lab.supervisor",
             str(machine.lab.record), machine.name],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/",
            env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "LANG": "C.UTF-8",
                 "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )  # fmt: skip
    deadline = time.monotonic() + 20
    while machine.supervisor() is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise HarnessError(
                f"{machine.name}: the machine's supervisor did not start; its log ends with: "
                f"{last_line(log.read_text())}"
            )
        time.sleep(0.02)
    return True


def close_connections(lab: LabSpec, address: str = "*") -> None:
    """End shared SSH connections (ControlPath of the inventory) to machines that were removed."""
    for socket in (lab.folder / "ssh").glob(f"cp-{address}-*"):
        succeeds("ssh", "-o", f"ControlPath={socket}", "-O", "exit", "lab")
        socket.unlink(missing_ok=True)


def wait_until_reachable(machine: Machine) -> None:
    """Return when the machine answers over SSH and has finished booting.

    Raises:
        HarnessError: it does not within the deadline; the end of its console is named.
    """
    spec = machine.read()[0]
    ssh = machine.lab.folder / "ssh"
    command = [
        *("ssh", "-F", "none", "-i", str(ssh / "id_ed25519")),
        *("-o", "BatchMode=yes", "-o", "ConnectTimeout=2"),
        *("-o", f"UserKnownHostsFile={ssh / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes"),
        *(f"{spec.user}@{spec.address}", "systemctl", "is-system-running", "--wait"),
    ]
    deadline = time.monotonic() + _REACHABLE_WITHIN_S
    answer = "the machine ended"
    while time.monotonic() < deadline and machine.supervisor() is not None:
        try:
            result = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_REACHABLE_WITHIN_S
            )
        except subprocess.TimeoutExpired:
            answer = "it never finished booting"
            break
        if result.stdout.strip() in ("running", "degraded"):
            return
        answer = " ".join((result.stderr or result.stdout).split())
        time.sleep(0.1)
    raise HarnessError(
        f"{machine.name}: no SSH at {spec.address} within {_REACHABLE_WITHIN_S:.0f} s ({answer}); "
        f"{_end_of_log(machine)}"
    )


def _end_of_log(machine: Machine) -> str:
    for name in ("supervisor.log", "console.log"):
        log = machine.folder / name
        if log.exists() and (line := last_line(log.read_text(errors="replace"), "")):
            return f"{log} ends with: {line}"
    return f"{machine.folder} holds no log"


def sweep(machine: Machine) -> bool:
    """Kill what runs of the machine and remove its group, cable and leftovers; its files stay."""
    groups = Groups()
    changes = [_end_supervisor(machine), groups.remove(machine.supervisor_group)]
    changes += [groups.remove(machine.group), link.unplug(machine.lab, machine.name)]
    for kind in ("propagate", "unix-export"):
        leftover = _NSPAWN_RUN / kind / machine.nspawn_name
        if leftover.exists():
            succeeds("umount", leftover)
            leftover.rmdir()
    return any(changes)


def _end_supervisor(machine: Machine) -> bool:
    """Have the supervisor end its machine and itself; what remains is killed with its group."""
    pid = machine.supervisor()
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 15
    while machine.supervisor() is not None and time.monotonic() < until:
        time.sleep(0.02)
    return True


def remove(machine: Machine) -> bool:
    """Remove everything of the machine; returns whether there was anything."""
    changed = sweep(machine)
    if not machine.folder.exists():
        return changed
    machine.record.unlink(missing_ok=True)
    shutil.rmtree(machine.folder)
    return True
