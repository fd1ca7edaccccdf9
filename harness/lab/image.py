"""The root file system that all machines share: made once, named after what defines it."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from harness.errors import HarnessError
from harness.lab.shell import run
from harness.lab.spec import LabSpec

RECIPE = 1
"""Raised whenever what is done to a file system beside its packages changes."""

MACHINE_PACKAGES = [
    "ca-certificates",
    "dbus",
    "iproute2",
    "openssh-server",
    "procps",
    "python3",
    "systemd",
    "systemd-sysv",
]

_SSHD = "PasswordAuthentication no\\nPermitRootLogin prohibit-password\\nUseDNS no\\nMaxStartups 64:30:128\\nMaxSessions 64\\n"
_CUSTOMIZE = [
    'rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/etc/apt/apt.conf.d/99mmdebstrap',
    'rm -f "$1"/etc/systemd/system/timers.target.wants/*',
    f'printf "{_SSHD}" > "$1"/etc/ssh/sshd_config.d/lab.conf',
    # Empty, not missing: a first boot would enable units by preset.
    ': > "$1"/etc/machine-id',
]


def declared_packages(roles: Path) -> list[str]:
    """Packages that the roles ask for on a node: the list ``<role>_packages`` in each role's defaults.

    Raises:
        HarnessError: such a variable is not a plain list of names.
    """
    found: set[str] = set()
    for defaults in sorted(roles.glob("*/defaults/main.y*ml")):
        role = defaults.parents[1].name
        asked = (yaml.safe_load(defaults.read_text()) or {}).get(f"{role}_packages", [])
        if not isinstance(asked, list) or not all(isinstance(n, str) and "{" not in n for n in asked):
            raise HarnessError(f"{defaults}: {role}_packages must be a plain list of package names")
        found |= set(asked)
    return sorted(found)


def packages(lab: LabSpec) -> list[str]:
    """Every package of the lab's image, sorted."""
    declared = declared_packages(lab.roles) if lab.roles else []
    return sorted({*MACHINE_PACKAGES, *lab.packages, *declared})


def host_release() -> tuple[str, str]:
    """Distribution and code name of this computer, which the machines share (os-release(5))."""
    pairs = (line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    values = {key: value.strip('"') for key, value in pairs}
    return values.get("ID", "unknown"), values.get("VERSION_CODENAME", "")


def apt_sources(targets: str, codename: str) -> list[str]:
    """One-line apt sources of ``codename``, its updates and its security suite.

    ``targets`` is `apt-get indextargets` in _TARGET_FORMAT, so the mirrors are the ones this computer is set up with.

    Raises:
        HarnessError: the computer has no source of that release.
    """
    lines: dict[tuple[str, str, str], list[str]] = {}
    for row in targets.splitlines():
        uri, suite, component, signed_by = row.split("|")
        base = suite.split("/")[0].removesuffix("-updates").removesuffix("-security")
        if base == codename:
            option = f"[signed-by={signed_by}] " if signed_by.startswith("/") else ""
            components = lines.setdefault((option, uri, suite), [])
            if component not in components:
                components.append(component)
    if not lines:
        raise HarnessError(
            f"apt on this computer has no source of '{codename}'; see /etc/apt/sources.list.d and apt-get update"
        )
    return [f"deb {option}{uri} {suite} {' '.join(parts)}" for (option, uri, suite), parts in lines.items()]


_TARGET_FORMAT = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"


def image_name(distribution: str, codename: str, machine: str, names: list[str]) -> str:
    """Name that changes with whatever defines the image."""
    text = json.dumps([RECIPE, distribution, codename, machine, names, _CUSTOMIZE])
    return f"{distribution}-{codename}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def wanted_image(lab: LabSpec) -> Path:
    """Folder where the lab's image is, or will be."""
    return lab.images / image_name(*host_release(), os.uname().machine, packages(lab))


def build_image(lab: LabSpec) -> bool:
    """Have the lab's image; tells whether it had to be made. Images that no lab uses any more are dropped then."""
    image = wanted_image(lab)
    if image.is_dir():
        return False
    lab.images.mkdir(parents=True, exist_ok=True)
    with _only_builder(lab):
        if image.is_dir():
            return False
        for stale in lab.images.glob("*.partial"):
            shutil.rmtree(stale)
        _drop_unused(lab)
        partial = image.with_name(f"{image.name}.partial")
        run(*mmdebstrap(partial, packages(lab), host_release()[1]))
        partial.rename(image)
    return True


def mmdebstrap(target: Path, names: list[str], codename: str) -> list[str]:
    """Command line that makes the file system, with this computer's apt settings and mirrors."""
    targets = run("apt-get", "indextargets", "--format", _TARGET_FORMAT, "Created-By: Packages")
    settings = [line.rstrip(";") for line in run("apt-config", "dump").splitlines() if _is_transport(line)]
    return [
        # Mounts and children of the build end with it, however it ends.
        *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(names)}"),
        *(f"--aptopt={setting}" for setting in [*settings, 'Acquire::Languages "none"']),
        *("--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/doc/*"),
        *("--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"),
        *(f"--customize-hook={hook}" for hook in _CUSTOMIZE),
        *(codename, str(target)),
        *apt_sources(targets, codename),
    ]


def _is_transport(line: str) -> bool:
    keys = (
        "Acquire::http::Proxy",
        "Acquire::https::",
        "Acquire::Check-Valid-Until",
        "Acquire::Check-Date",
        "Acquire::Retries",
    )
    return line.startswith(keys) and not line.endswith('"";')


def _drop_unused(lab: LabSpec) -> None:
    used = {json.loads(m.read_text())["image"] for m in lab.root.glob("*/machines/*/machine.json")}
    for image in lab.images.iterdir():
        if image.is_dir() and str(image) not in used:
            shutil.rmtree(image)


@contextmanager
def _only_builder(lab: LabSpec) -> Iterator[None]:
    """Hold the images folder, and leave word of who builds there."""
    with (lab.images / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"{lab.name} {os.getpid()}")
        lock.flush()
        yield


def stop_build(lab: LabSpec) -> bool:
    """End a build that an interrupted `up` of this lab left running, and remove what it had written."""
    path = lab.images / ".lock"
    if not path.exists():
        return False
    with path.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            name, pid = lock.read().split()
            if name != lab.name:
                return False
            _kill_tree(int(pid))
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.1)
        leftovers = list(lab.images.glob("*.partial"))
        for stale in leftovers:
            shutil.rmtree(stale)
    return bool(leftovers)


def _kill_tree(pid: int) -> None:
    """Kill a process and all below it, the youngest last so that none is adopted unseen."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    below = [int(word) for word in children.read_text().split()] if children.exists() else []
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    for child in below:
        _kill_tree(child)
