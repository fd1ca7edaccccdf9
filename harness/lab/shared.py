"""What the machines of a lab share: its record, keys, swap and network; and its removal."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from harness.errors import HarnessError
from harness.lab import link
from harness.lab.cgroup import Groups
from harness.lab.image import stop_build
from harness.lab.machine import Machine, close_connections, remove
from harness.lab.preflight import is_foreign
from harness.lab.spec import LabSpec, parse_spec
from harness.lab.system import run, write_if_changed

_NSPAWN_FOLDERS = [Path("/run/systemd/nspawn") / name for name in ("propagate", "unix-export", "locks", "")]


@contextmanager
def locked(lab: LabSpec, how: Literal["none", "shared", "alone"]) -> Iterator[LabSpec]:
    """Lock the lab for one step; yields it as it is recorded (as described, where nothing is recorded).

    `down` waits for a step that an interrupted `up` left running.
    """
    if how == "none":
        yield lab
        return
    with contextlib.ExitStack() as stack:
        while True:
            lab.root.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(_lock_path(lab).open("a"))
            fcntl.flock(lock, fcntl.LOCK_EX if how == "alone" else fcntl.LOCK_SH)
            # `down` removes the file that it locks: only a lock on the file of that name counts.
            with contextlib.suppress(FileNotFoundError):
                if os.path.sameopenfile(lock.fileno(), stack.enter_context(_lock_path(lab).open()).fileno()):
                    break
        yield recorded(lab)


def _lock_path(lab: LabSpec) -> Path:
    return lab.root / f".{lab.name}.lock"


def recorded(lab: LabSpec) -> LabSpec:
    """The lab as `up` wrote it down; ``lab`` itself where it did not, or the record cannot be read."""
    with contextlib.suppress(HarnessError, FileNotFoundError):
        return parse_spec(lab.record.read_text())
    return lab


def claim(lab: LabSpec) -> bool:
    """Record that the lab owns its names, before anything is made under them.

    Machines that were recorded before stay recorded: `up` may be for some of the nodes.
    """
    machines = {machine.name: machine for machine in [*recorded(lab).machines, *lab.machines]}
    ordered = sorted(machines.values(), key=lambda machine: machine.address)
    lab.folder.mkdir(parents=True, exist_ok=True)
    text = lab.model_copy(update={"machines": ordered}).model_dump_json(indent=1)
    return write_if_changed(lab.record, text)


def keys(lab: LabSpec) -> bool:
    """Make the login key, a host key per machine, and known_hosts that names them."""
    ssh = lab.folder / "ssh"
    ssh.mkdir(mode=0o700, exist_ok=True)
    changed = _key(ssh / "id_ed25519", f"lab-{lab.name}")
    lines = []
    for machine in lab.machines:
        folder = ssh / "hosts" / machine.name
        folder.mkdir(parents=True, exist_ok=True)
        changed |= _key(folder / "ssh_host_ed25519_key", machine.name)
        kind, key, *_ = (folder / "ssh_host_ed25519_key.pub").read_text().split()
        lines.append(f"{machine.address},{machine.name} {kind} {key}\n")
    return write_if_changed(ssh / "known_hosts", "".join(lines)) or changed


def _key(path: Path, comment: str) -> bool:
    public = path.with_name(f"{path.name}.pub")
    if path.exists() and public.exists():
        return False
    path.unlink(missing_ok=True)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path)
    return True


def swap_up(lab: LabSpec) -> bool:
    """Use a swap file of the described size; returns whether that changed anything."""
    if lab.swap == 0:
        return swap_down(lab)
    if _swap_is_active(lab) and lab.swap_file.stat().st_size == lab.swap:
        return False
    swap_down(lab)
    partial = lab.swap_file.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, lab.swap)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise HarnessError(f"{lab.swap_file}: no room for {lab.swap} bytes of swap: {error}") from None
    partial.chmod(0o600)
    run("mkswap", partial)
    partial.replace(lab.swap_file)
    run("swapon", lab.swap_file)
    return True


def swap_down(lab: LabSpec) -> bool:
    """Stop using the swap file and remove it; returns whether there was one."""
    active = _swap_is_active(lab)
    if active:
        run("swapoff", lab.swap_file)
    existed = lab.swap_file.exists()
    lab.swap_file.unlink(missing_ok=True)
    lab.swap_file.with_suffix(".partial").unlink(missing_ok=True)
    return active or existed


def _swap_is_active(lab: LabSpec) -> bool:
    lines = Path("/proc/swaps").read_text().splitlines()[1:]
    return any(line.split()[0] == str(lab.swap_file) for line in lines)


def machine_names(lab: LabSpec) -> list[str]:
    """Every machine that has files or control groups, complete or not."""
    names = {folder.name for folder in (lab.folder / "machines").glob("*") if folder.is_dir()}
    for tree in Groups().hierarchies:
        groups = (path for path in (tree.mount / lab.group).glob("*") if path.is_dir())
        names |= {group.name.removesuffix(".supervisor") for group in groups}
    return sorted(names)


def shared_up(lab: LabSpec) -> bool:
    """Make everything that machines share."""
    lab.models.mkdir(parents=True, exist_ok=True)
    return any([keys(lab), swap_up(lab), link.bridge_up(lab), link.firewall_up(lab)])


def down(lab: LabSpec) -> bool:
    """Remove the lab, except its image and other caches; returns whether there was anything.

    Raises:
        HarnessError: the lab's folder was never a lab's, or something in it cannot be removed.
    """
    if is_foreign(lab.folder) and not lab.record.exists():
        raise HarnessError(
            f"{lab.folder} is not a lab's folder (no lab.json in it); remove it or name another lab"
        )
    changes = [stop_build(lab), *(remove(Machine(lab, name)) for name in machine_names(lab))]
    changes += [link.bridge_down(lab), link.firewall_down(lab), swap_down(lab), Groups().remove(lab.group)]
    close_connections(lab)
    changes.append(_remove_files(lab))
    _lock_path(lab).unlink(missing_ok=True)
    shared = [tree.mount / lab.group.parent for tree in Groups().hierarchies]
    _remove_empty(*shared, lab.root, lab.root.parent, *_NSPAWN_FOLDERS)
    return any(changes)


def _remove_files(lab: LabSpec) -> bool:
    """Remove the lab's folder, its record last: until then the folder is known to be a lab's."""
    if not lab.folder.exists():
        return False
    for path in lab.folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path != lab.record:
            path.unlink()
    lab.record.unlink(missing_ok=True)
    lab.folder.rmdir()
    return True


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
