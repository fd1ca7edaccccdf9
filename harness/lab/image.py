"""The root file systems of machines, one for each suite: what defines one, and how one builder makes it."""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from harness.errors import HarnessError
from harness.lab.spec import LabSpec
from harness.lab.system import run, take_lock

RECIPE = 3
"""Raised whenever the steps that make a file system change, apart from its packages."""

MACHINE_PACKAGES = [
    "ca-certificates",
    "dbus",
    "iproute2",
    "openssh-server",
    "procps",
    "python3",
    "sudo",
    "systemd",
    "systemd-sysv",
]

ADMIN_ID = 1000
"""User and group number of ``admin``."""

_SSHD = "PasswordAuthentication no\\nUseDNS no\\nMaxStartups 64:30:128\\nMaxSessions 64\\n"
_CUSTOMIZE = [
    # What belongs to one machine, or to this computer.
    'rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/resolv.conf "$1"/etc/hostname',
    'rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/systemd/system/timers.target.wants/*',
    # Empty, not missing: a first boot would enable units by preset.
    ': > "$1"/etc/machine-id',
    ': > "$1"/etc/default/locale',
    f'printf "{_SSHD}" > "$1"/etc/ssh/sshd_config.d/lab.conf',
    # Of the machines whose user is not root.
    f'chroot "$1" useradd --create-home --uid {ADMIN_ID} --shell /bin/bash admin',
    'echo "admin ALL=(ALL) NOPASSWD: ALL" > "$1"/etc/sudoers.d/admin',
]
_KILL_DEADLINE_S = 20.0
_SPARE_IMAGES = 3
_TARGET_FORMAT = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"
_APT_SETTINGS = (
    "Acquire::http::Proxy",
    "Acquire::https::",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Retries",
)


def declared_packages(roles: Path) -> list[str]:
    """Packages that the roles install on a node: the list ``<role>_packages`` in each role's defaults.

    Raises:
        HarnessError: such a variable is not a plain list of names.
    """
    names: set[str] = set()
    for defaults in sorted(roles.glob("*/defaults/main.y*ml")):
        role = defaults.parents[1].name
        declared = (yaml.safe_load(defaults.read_text()) or {}).get(f"{role}_packages", [])
        if not isinstance(declared, list) or not all(isinstance(n, str) and "{" not in n for n in declared):
            raise HarnessError(f"{defaults}: {role}_packages must be a plain list of package names")
        names |= set(declared)
    return sorted(names)


def packages(lab: LabSpec) -> list[str]:
    """Every package of the lab's image, sorted."""
    declared = declared_packages(lab.roles) if lab.roles else []
    return sorted({*MACHINE_PACKAGES, *lab.packages, *declared})


def host_release() -> tuple[str, str]:
    """Distribution and code name of this computer, which the machines share (os-release(5))."""
    release = platform.freedesktop_os_release()
    return release["ID"], release.get("VERSION_CODENAME", "")


def image_name(distribution: str, codename: str, machine: str, names: list[str]) -> str:
    """Name that changes with everything that defines the image."""
    text = json.dumps([RECIPE, distribution, codename, machine, names, _CUSTOMIZE])
    return f"{distribution}-{codename}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def wanted_image(lab: LabSpec, suite: str) -> Path:
    """Folder where the lab's image of a suite is, or will be; an empty suite is this computer's."""
    distribution, codename = host_release()
    return lab.images / image_name(distribution, suite or codename, os.uname().machine, packages(lab))


def missing_images(lab: LabSpec) -> dict[str, Path]:
    """Suite and folder of each image that machines need which are not made yet, and that is not there."""
    wanted = {m.suite or host_release()[1]: wanted_image(lab, m.suite) for m in lab.missing}
    return {suite: image for suite, image in wanted.items() if not image.is_dir()}


def apt_sources(targets: str, codename: str, suite: str) -> list[str]:
    """One-line apt sources of ``suite``, its updates and its security suite.

    Args:
        targets: what `apt-get indextargets` lists, so the mirrors are those this computer is set up with.
        codename: this computer's release, such as ``bookworm``.
        suite: the release wanted, from the same mirrors.

    Raises:
        HarnessError: the computer has no source of its own release.
    """
    sources: dict[tuple[str, str, str], list[str]] = {}
    for row in targets.splitlines():
        uri, name, component, signed_by = row.split("|")
        base = name.split("/")[0].removesuffix("-updates").removesuffix("-security")
        if base == codename:
            option = f"[signed-by={signed_by}] " if signed_by.startswith("/") else ""
            components = sources.setdefault((option, uri, name.replace(codename, suite)), [])
            if component not in components:
                components.append(component)
    if not sources:
        raise HarnessError(
            f"apt on this computer has no source of '{codename}'; "
            "add one to /etc/apt/sources.list.d, then apt-get update"
        )
    return [f"deb {option}{uri} {name} {' '.join(parts)}" for (option, uri, name), parts in sources.items()]


def mmdebstrap(target: Path, names: list[str], suite: str) -> list[str]:
    """Command line that makes the file system, with this computer's apt settings and mirrors."""
    targets = run("apt-get", "indextargets", "--format", _TARGET_FORMAT, "Created-By: Packages")
    dump = (line.rstrip(";") for line in run("apt-config", "dump").splitlines())
    settings = [line for line in dump if line.startswith(_APT_SETTINGS) and not line.endswith('""')]
    return [
        # Mounts and children of the build end with it, however it ends.
        *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"),
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(names)}"),
        *(f"--aptopt={setting}" for setting in [*settings, 'Acquire::Languages "none"']),
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "man", "locale")),
        *(f"--customize-hook={hook}" for hook in _CUSTOMIZE),
        *(suite, str(target)),
        *apt_sources(targets, host_release()[1], suite),
    ]


def build_image(lab: LabSpec) -> bool:
    """Make the images for machines that are not made yet; returns whether one was missing."""
    for machine in lab.missing:
        if (present := wanted_image(lab, machine.suite)).is_dir():
            os.utime(present)
    if not missing_images(lab):
        return False
    lab.images.mkdir(parents=True, exist_ok=True)
    with _only_builder(lab):
        missing = missing_images(lab)
        if missing:
            _remove(list(lab.images.glob("*.partial")))
            _remove(_outdated(lab))
        for suite, image in missing.items():
            partial = image.with_name(f"{image.name}.partial")
            run(*mmdebstrap(partial, packages(lab), suite))
            partial.rename(image)
    return bool(missing)


def stop_build(lab: LabSpec) -> bool:
    """End a build that an interrupted `up` of this lab left running, and remove its partial image."""
    path = lab.images / ".lock"
    if not path.exists():
        return False
    with path.open("r+") as lock:
        if not take_lock(lock):
            name, _, pid = lock.read().partition(" ")
            if name != lab.name:
                return False
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
            take_lock(lock, _KILL_DEADLINE_S)
        stale = list(lab.images.glob("*.partial"))
        _remove(stale)
    return bool(stale)


def _outdated(lab: LabSpec) -> list[Path]:
    """Images that no machine uses, except the ones used last."""
    used = {json.loads(record.read_text())["image"] for record in lab.root.glob("*/machines/*/machine.json")}
    free = [image for image in lab.images.iterdir() if image.is_dir() and str(image) not in used]
    return sorted(free, key=lambda image: image.stat().st_mtime, reverse=True)[_SPARE_IMAGES:]


@contextmanager
def _only_builder(lab: LabSpec) -> Iterator[None]:
    """Lock the images folder, and record who builds there."""
    with (lab.images / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"{lab.name} {os.getpid()}")
        lock.flush()
        yield


def _remove(folders: list[Path]) -> None:
    """Remove whole trees; a dying builder may still write, so each is tried until the deadline."""
    until = time.monotonic() + _KILL_DEADLINE_S
    for folder in folders:
        while folder.exists():
            shutil.rmtree(folder, ignore_errors=True)
            if folder.exists() and time.monotonic() > until:
                raise HarnessError(f"{folder} cannot be removed; end what uses it, then try again")
