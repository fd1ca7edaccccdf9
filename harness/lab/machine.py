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

from harness.errors import HarnessError
from harness.lab import link
from harness.lab.cgroup import Groups
from harness.lab.shell import run, succeeds, write_atomically
from harness.lab.spec import LabSpec, MachineSpec

_NSPAWN_RUN = Path("/run/systemd/nspawn")


@dataclass(frozen=True)
class Machine:
    """A machine of a lab, by name; nothing here needs it to exist."""

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
        """booting, running, off, failed, or stopped (made, but nothing runs it)."""
        if self.supervisor() is None:
            with contextlib.suppress(FileNotFoundError, ValueError):
                last = str(json.loads(self.state_file.read_text())["state"])
                return last if last in ("off", "failed") else "stopped"
            return "stopped"
        with contextlib.suppress(FileNotFoundError, ValueError):
            return str(json.loads(self.state_file.read_text())["state"])
        return "booting"


def make(machine: Machine, spec: MachineSpec, image: Path) -> bool:
    """Have the machine's folder as ``spec`` says; tells whether it changed.

    A machine keeps the image it was made from: its own files lie on top of that one.
    """
    if machine.record.exists():
        before, image = machine.read()
        if before == spec:
            return False
        if before.address != spec.address:
            raise HarnessError(
                f"{spec.name}: its address is {before.address}, and {spec.address} is asked for; "
                "take the lab down first"
            )
    else:
        remove(machine)
        _seed(machine, spec)
    text = json.dumps({"machine": spec.model_dump(mode="json"), "image": str(image)})
    return write_atomically(machine.record, text)


def _seed(machine: Machine, spec: MachineSpec) -> None:
    """Write what makes this machine itself: its name, its neighbours, who may log in, its host key."""
    upper = machine.folder / "upper"
    for folder in (
        upper,
        machine.folder / "work",
        machine.folder / "root",
        upper / "etc/ssh",
        upper / "root/.ssh",
    ):
        folder.mkdir(parents=True, exist_ok=True)
    (upper / "root").chmod(0o700)
    (upper / "root/.ssh").chmod(0o700)
    lab = machine.lab
    neighbours = "".join(f"{other.address} {other.name}\n" for other in lab.machines)
    write_atomically(upper / "etc/hostname", f"{spec.name}\n")
    write_atomically(upper / "etc/hosts", f"127.0.0.1 localhost\n{neighbours}")
    public = (lab.folder / "ssh/id_ed25519.pub").read_text()
    write_atomically(upper / "root/.ssh/authorized_keys", public, 0o600)
    for key in (lab.folder / "ssh/hosts" / spec.name).iterdir():
        write_atomically(upper / "etc/ssh" / key.name, key.read_text(), key.stat().st_mode & 0o777)


def apply_limits(machine: Machine) -> None:
    """Put the recorded memory and CPU limits in force."""
    spec, _ = machine.read()
    Groups().limit(machine.group, spec.memory, machine.lab.swap, spec.cpu)


def start(machine: Machine) -> bool:
    """Have a supervisor that keeps the machine up; tells whether one had to be started."""
    if machine.supervisor() is not None:
        return False
    sweep(machine)
    machine.state_file.unlink(missing_ok=True)
    log = machine.folder / "supervisor.log"
    with log.open("a") as output:
        process = subprocess.Popen(
            # A mount namespace of its own: whatever happens, its mounts end with it.
            ["unshare", "--mount", "--propagation", "slave", sys.executable, "-m", "harness.lab.supervisor",
             str(machine.lab.record), machine.name],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/",
            env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "LANG": "C.UTF-8",
                 "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )  # fmt: skip
    deadline = time.monotonic() + 20
    while machine.supervisor() is None:
        if process.poll() is not None or time.monotonic() > deadline:
            last = (log.read_text().strip().splitlines() or ["nothing"])[-1]
            raise HarnessError(
                f"{machine.name}: the machine's supervisor did not start; its log ends with: {last}"
            )
        time.sleep(0.02)
    return True


def boot_command(machine: Machine, namespace: Path, image_root: Path, groups: Groups) -> list[str]:
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


def sweep(machine: Machine) -> bool:
    """Kill what runs of the machine and remove its group, cable and leftovers; its files stay."""
    groups = Groups()
    found = [_end_supervisor(machine), groups.remove(machine.supervisor_group), groups.remove(machine.group)]
    found.append(link.unplug(machine.lab, machine.name))
    for kind in ("propagate", "unix-export"):
        leftover = _NSPAWN_RUN / kind / machine.nspawn_name
        if leftover.exists():
            succeeds("umount", leftover)
            leftover.rmdir()
    return any(found)


def _end_supervisor(machine: Machine, deadline_s: float = 15) -> bool:
    """Have the supervisor end its machine and itself; what then remains is killed with its group."""
    pid = machine.supervisor()
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + deadline_s
    while machine.supervisor() is not None and time.monotonic() < until:
        time.sleep(0.02)
    return True


def remove(machine: Machine) -> bool:
    """Leave nothing of the machine; tells whether there was anything."""
    found = sweep(machine)
    if not machine.folder.exists():
        return found
    machine.record.unlink(missing_ok=True)
    shutil.rmtree(machine.folder)
    return True


def fresh_namespace(path: Path) -> None:
    """A new, empty network namespace held by the file ``path``."""
    succeeds("umount", "--lazy", path)
    path.touch()
    run("unshare", f"--net={path}", "true")
