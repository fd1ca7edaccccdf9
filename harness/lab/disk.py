"""A small disk in a running machine: a loop file system of this computer's, mounted inside.

Machines see no loop device of their own; the mount is made from outside, in the machine's mount namespace.
"""

import contextlib
import os
from pathlib import Path

from harness.errors import HarnessError
from harness.lab.cgroup import Groups
from harness.lab.machine import Machine
from harness.lab.shell import run
from harness.lab.spec import LabSpec

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


def attach(lab: LabSpec, name: str, folder: Path, size: int, owner: tuple[int, int]) -> None:
    """Mount an empty file system of ``size`` bytes on a machine's ``folder``, for a user and group there.

    Raises:
        HarnessError: the machine is not up, or this computer has no loop devices or no ext4.
    """
    machine = Machine(lab, name)
    image = _image(machine)
    with image.open("wb") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", "-F", "-m", "0", image)
    device = run("losetup", "--find", "--show", image).strip()
    number = Path(device).stat().st_rdev
    words = (os.major(number), os.minor(number), folder, *owner)
    run(*_inside(machine), "sh", "-c", _MOUNT, "sh", *(str(word) for word in words))


def detach(lab: LabSpec, name: str, folder: Path) -> None:
    """Take the file system away again; nothing changes where there is none.

    Raises:
        HarnessError: something in the machine still uses it.
    """
    machine = Machine(lab, name)
    image = _image(machine)
    if not image.exists():
        return
    with contextlib.suppress(HarnessError):  # a machine that has gone took its mounts with it
        run(*_inside(machine), "sh", "-c", _UMOUNT, "sh", str(folder))
    for line in run("losetup", "--noheadings", "--output", "NAME", "--associated", image).splitlines():
        run("losetup", "--detach", line.strip())
    image.unlink()


def attached(lab: LabSpec, name: str) -> bool:
    """Whether a machine has such a disk."""
    return _image(Machine(lab, name)).exists()


def _image(machine: Machine) -> Path:
    return machine.folder / "disk.img"


def _inside(machine: Machine) -> tuple[str, ...]:
    """Prefix that runs a command in the mount namespace of a running machine."""
    for pid in sorted(Groups().processes(machine.group)):
        # The first process inside: systemd, whose id there is 1.
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            ids = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
            if ids[-1] == "1" and len(ids) > 1:
                return ("nsenter", f"--target={pid}", "--mount", "--root")
    raise HarnessError(f"{machine.name}: it does not run; harness lab up starts it")
