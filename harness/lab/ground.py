"""What the machines of a lab share: its record, keys, swap and network; and taking all of it away."""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from harness.errors import HarnessError
from harness.lab import link
from harness.lab.cgroup import Groups
from harness.lab.image import stop_build
from harness.lab.machine import Machine, remove
from harness.lab.shell import run, succeeds, write_atomically
from harness.lab.spec import LabSpec, parse_spec


def claim(lab: LabSpec) -> bool:
    """Write down that the lab's names are its own, before anything bears them."""
    lab.folder.mkdir(parents=True, exist_ok=True)
    return write_atomically(lab.record, lab.model_dump_json(indent=1))


def keys(lab: LabSpec) -> bool:
    """Have the key that logs in, a host key per machine, and known_hosts that names them."""
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
    return write_atomically(ssh / "known_hosts", "".join(lines)) or changed


def _key(path: Path, comment: str) -> bool:
    public = path.with_name(f"{path.name}.pub")
    if path.exists() and public.exists():
        return False
    path.unlink(missing_ok=True)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path)
    return True


def swap_up(lab: LabSpec) -> bool:
    """Have the lab's swap file in use, of the size asked for; tells whether that changed anything."""
    active = _active_swap(lab)
    if lab.swap == 0:
        return swap_down(lab)
    if active and lab.swap_file.stat().st_size == lab.swap:
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
    """Take the swap file out of use and away; tells whether there was one."""
    active = _active_swap(lab)
    if active:
        run("swapoff", lab.swap_file)
    there = lab.swap_file.exists()
    lab.swap_file.unlink(missing_ok=True)
    lab.swap_file.with_suffix(".partial").unlink(missing_ok=True)
    return active or there


def _active_swap(lab: LabSpec) -> bool:
    lines = Path("/proc/swaps").read_text().splitlines()[1:]
    return any(line.split()[0] == str(lab.swap_file) for line in lines)


def machine_names(lab: LabSpec) -> list[str]:
    """Every machine of which there is a trace, whole or not, in files or in control groups."""
    names = {folder.name for folder in (lab.folder / "machines").glob("*") if folder.is_dir()}
    for tree in Groups().hierarchies:
        names |= {
            g.name.removesuffix(".supervisor") for g in (tree.mount / lab.group).glob("*") if g.is_dir()
        }
    return sorted(names)


def ground_up(lab: LabSpec) -> bool:
    """Have everything that machines share."""
    steps: list[Callable[[LabSpec], bool]] = [keys, swap_up, link.bridge_up, link.fence_up]
    lab.models.mkdir(parents=True, exist_ok=True)
    return any([step(lab) for step in steps])


def down(lab: LabSpec) -> bool:
    """Leave nothing of the lab but its image and other caches; tells whether there was anything."""
    found = [stop_build(lab)]
    if lab.record.exists():
        with contextlib.suppress(HarnessError):
            lab = parse_spec(lab.record.read_text())
    elif lab.folder.exists():
        raise HarnessError(
            f"{lab.folder} is not a lab's folder (no lab.json in it); remove it or name another lab"
        )
    found += [remove(Machine(lab, name)) for name in machine_names(lab)]
    found += [link.bridge_down(lab), link.fence_down(lab), swap_down(lab)]
    groups = Groups()
    found.append(groups.remove(lab.group))
    for tree in groups.hierarchies:
        with contextlib.suppress(OSError):  # another lab is up
            (tree.mount / lab.group.parent).rmdir()
    for socket in (lab.folder / "ssh").glob("cp-*"):
        succeeds("ssh", "-o", f"ControlPath={socket}", "-O", "exit", "lab")
    if lab.folder.exists():
        found.append(True)
        for part in ("machines", "ssh"):
            shutil.rmtree(lab.folder / part, ignore_errors=True)
        shutil.rmtree(lab.folder)
    _remove_empty(
        lab.root, lab.root.parent, Path("/run/systemd/nspawn/propagate"), Path("/run/systemd/nspawn")
    )
    return any(found)


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
