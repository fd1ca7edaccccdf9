"""The root file system that all machines share: what defines it, and so its name."""

import hashlib
import json
import os
from pathlib import Path

import yaml

from harness.errors import HarnessError
from harness.lab.shell import run
from harness.lab.spec import LabSpec

RECIPE = 2
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

_SSHD = "PasswordAuthentication no\\nUseDNS no\\nMaxStartups 64:30:128\\nMaxSessions 64\\n"
_CUSTOMIZE = [
    # What belongs to one machine, or to this computer.
    'rm -f "$1"/etc/ssh/ssh_host_* "$1"/etc/resolv.conf "$1"/etc/hostname',
    'rm -f "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/systemd/system/timers.target.wants/*',
    # Empty, not missing: a first boot would enable units by preset.
    ': > "$1"/etc/machine-id',
    ': > "$1"/etc/default/locale',
    f'printf "{_SSHD}" > "$1"/etc/ssh/sshd_config.d/lab.conf',
]
_TARGET_FORMAT = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"
_APT_SETTINGS = (
    "Acquire::http::Proxy",
    "Acquire::https::",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Retries",
)


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


def image_name(distribution: str, codename: str, machine: str, names: list[str]) -> str:
    """Name that changes with whatever defines the image."""
    text = json.dumps([RECIPE, distribution, codename, machine, names, _CUSTOMIZE])
    return f"{distribution}-{codename}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def wanted_image(lab: LabSpec) -> Path:
    """Folder where the lab's image is, or will be."""
    return lab.images / image_name(*host_release(), os.uname().machine, packages(lab))


def apt_sources(targets: str, codename: str) -> list[str]:
    """One-line apt sources of ``codename``, its updates and its security suite.

    Args:
        targets: what `apt-get indextargets` lists, so the mirrors are those this computer is set up with.
        codename: the release, such as ``bookworm``.

    Raises:
        HarnessError: the computer has no source of that release.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in targets.splitlines():
        uri, suite, component, signed_by = row.split("|")
        base = suite.split("/")[0].removesuffix("-updates").removesuffix("-security")
        if base == codename:
            option = f"[signed-by={signed_by}] " if signed_by.startswith("/") else ""
            components = found.setdefault((option, uri, suite), [])
            if component not in components:
                components.append(component)
    if not found:
        raise HarnessError(
            f"apt on this computer has no source of '{codename}'; "
            "mend /etc/apt/sources.list.d, then apt-get update"
        )
    return [f"deb {option}{uri} {suite} {' '.join(parts)}" for (option, uri, suite), parts in found.items()]


def mmdebstrap(target: Path, names: list[str], codename: str) -> list[str]:
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
        *(codename, str(target)),
        *apt_sources(targets, codename),
    ]
