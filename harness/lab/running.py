"""A lab's machines while they run: their state, and changes to their limits, link, cable and disk."""

import contextlib
import json
import os
from pathlib import Path

from pydantic import BaseModel

from harness.errors import HarnessError
from harness.lab import link
from harness.lab.cgroup import Groups
from harness.lab.machine import Machine, apply_limits
from harness.lab.spec import LabSpec, parse_spec, veth_name
from harness.lab.system import run

# Machines see no loop device of their own: the mount is made from outside, in the machine's mount namespace.
_MOUNT = """
set -e
device=$(mktemp -u /dev/llama-lab.XXXXXX)
mknod "$device" b "$1" "$2"
mount -t ext4 "$device" "$3" || { rm "$device"; exit 1; }
rm "$device"
chown "$4:$5" "$3"
chmod 750 "$3"
"""
_UMOUNT = 'while mountpoint -q "$1"; do umount "$1" || exit 1; done'


class MachineStatus(BaseModel):
    """One machine as it is now; sizes in bytes."""

    machine: str
    address: str
    state: str
    boots: int = 0
    memory_limit: int | None = None
    memory_used: int = 0
    swap_used: int = 0
    rate_bits: int | None = None
    """Rate limit of its cable in bits per second; None is not shaped."""
    image: str = ""


def lab_status(folder: Path) -> tuple[LabSpec | None, list[MachineStatus]]:
    """The lab in ``folder`` and each of its machines, read without touching one; no lab where it is down."""
    record = folder / "lab.json"
    if not record.exists():
        return None, []
    lab = parse_spec(record.read_text())
    return lab, [_machine_status(Machine(lab, spec.name), str(spec.address)) for spec in lab.machines]


def _machine_status(machine: Machine, address: str) -> MachineStatus:
    if not machine.record.exists():
        return MachineStatus(machine=machine.name, address=address, state="absent")
    _, image = machine.read()
    status = MachineStatus(machine=machine.name, address=address, state=machine.state(), image=image.name)
    if machine.state_file.exists():
        status.boots = json.loads(machine.state_file.read_text())["boots"]
    with contextlib.suppress(HarnessError, FileNotFoundError):
        usage = Groups().usage(machine.group)
        status.memory_limit, status.memory_used, status.swap_used = usage.limit, usage.used, usage.swap
        status.rate_bits = link.shaped_rate(veth_name(machine.lab.name, machine.name))
    return status


def retune(machine: Machine) -> bool:
    """Apply the recorded limits and rate; returns whether anything changed."""
    if machine.state() != "running":  # a machine that boots reads them by itself
        return False
    spec, _ = machine.read()
    before = _limits(machine)
    apply_limits(machine)
    changed = _limits(machine) != before
    wanted = int(link.bits_per_second(spec.rate)) if spec.rate else None
    if link.shaped_rate(veth_name(machine.lab.name, machine.name)) != wanted:
        link.shape(machine.lab, spec, _in_network(machine))
        changed = True
    return changed


def _limits(machine: Machine) -> list[str]:
    """The limits in force, as the kernel writes them."""
    groups = Groups()
    memory, cpu = groups.folder("memory", machine.group), groups.folder("cpu", machine.group)
    paths = [
        *(
            memory / f"memory.{name}"
            for name in ("max", "swap.max", "limit_in_bytes", "memsw.limit_in_bytes")
        ),
        *(cpu / f"cpu.{name}" for name in ("max", "cfs_quota_us")),
    ]
    return [path.read_text().strip() for path in paths if path.exists()]


def _supervisor(machine: Machine) -> int:
    pid = machine.supervisor()
    if pid is None:
        raise HarnessError(f"{machine.name}: nothing keeps it up; harness lab up starts it")
    return pid


def _in_network(machine: Machine) -> tuple[str, ...]:
    """Prefix that runs a command in the network of a running machine."""
    # The namespace's file is a mount that only the supervisor sees.
    mounts = ("nsenter", f"--target={_supervisor(machine)}", "--mount")
    return (*mounts, "nsenter", f"--net={machine.folder / 'netns'}")


def _in_mounts(machine: Machine) -> tuple[str, ...]:
    """Prefix that runs a command in the mount namespace of a running machine."""
    for pid in sorted(Groups().processes(machine.group)):
        # The first process inside: systemd, whose id there is 1.
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            ids = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
            if ids[-1] == "1" and len(ids) > 1:
                return ("nsenter", f"--target={pid}", "--mount", "--root")
    raise HarnessError(f"{machine.name}: it does not run; harness lab up starts it")


def unplug_cable(lab: LabSpec, name: str) -> None:
    """Unplug a machine's cable: nothing reaches it, and nothing it sends arrives.

    Raises:
        HarnessError: the lab has no such machine, or it is not up.
    """
    run("ip", "link", "set", _cable(lab, name), "down")


def plug_cable(lab: LabSpec, name: str) -> bool:
    """Plug a machine's cable in again; returns whether it was unplugged."""
    device = _cable(lab, name)
    unplugged = "UP" not in json.loads(run("ip", "-j", "link", "show", "dev", device))[0]["flags"]
    if unplugged:
        run("ip", "link", "set", device, "up")
    return unplugged


def _cable(lab: LabSpec, name: str) -> str:
    _supervisor(Machine(lab, lab.machine(name).name))
    return veth_name(lab.name, name)


def limit_rate(lab: LabSpec, name: str, rate: str) -> None:
    """Hold a machine's link to ``rate`` (``100mbit``) in both directions."""
    machine = lab.machine(name).model_copy(update={"rate": rate})
    link.shape(lab, machine, _in_network(Machine(lab, name)))


def restore_rate(lab: LabSpec, name: str) -> None:
    """Give a machine's link the rate of the lab's description, or no limit."""
    link.shape(lab, lab.machine(name), _in_network(Machine(lab, name)))


def attach_disk(lab: LabSpec, name: str, folder: Path, size: int, owner: tuple[int, int]) -> None:
    """Mount an empty file system of ``size`` bytes on a machine's ``folder``, for a user and group there.

    Raises:
        HarnessError: the machine is not up, or this computer has no loop devices or no ext4.
    """
    machine = Machine(lab, name)
    with machine.disk_image.open("wb") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", "-F", "-m", "0", machine.disk_image)
    number = Path(run("losetup", "--find", "--show", machine.disk_image).strip()).stat().st_rdev
    words = [str(word) for word in (os.major(number), os.minor(number), folder, *owner)]
    run(*_in_mounts(machine), "sh", "-c", _MOUNT, "sh", *words)


def detach_disk(lab: LabSpec, name: str, folder: Path) -> None:
    """Remove the file system again; nothing changes where there is none.

    Raises:
        HarnessError: something in the machine still uses it.
    """
    machine = Machine(lab, name)
    image = machine.disk_image
    if not image.exists():
        return
    with contextlib.suppress(HarnessError):  # the mounts of a machine end with it
        run(*_in_mounts(machine), "sh", "-c", _UMOUNT, "sh", folder)
    for line in run("losetup", "--noheadings", "--output", "NAME", "--associated", image).splitlines():
        run("losetup", "--detach", line.strip())
    image.unlink()
