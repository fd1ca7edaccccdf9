"""Everything that would stop a lab from starting, checked before anything is changed."""

import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network
from pathlib import Path

from harness.common.text import GIB, gib
from harness.errors import HarnessError
from harness.lab.cgroup import Groups
from harness.lab.image import missing_images
from harness.lab.spec import LabSpec, parse_spec, veth_name
from harness.lab.system import run

IMAGE_BYTES = 2 * GIB
"""Room that making an image takes at its height."""
MACHINE_RESIDENT_BYTES = 160 * 2**20
"""Memory of a machine with nothing deployed, about."""
DEPLOYED_BYTES = 350 * 2**20
"""Memory of a machine with everything deployed and no model, about."""


def obstacles(lab: LabSpec) -> list[str]:
    """One line for each obstacle, with the way out; empty when the lab can start."""
    if os.geteuid() != 0:
        return ["the lab needs root: run this as root or with sudo"]
    if lines := [*_system(), *_tools(lab)]:
        return lines
    return [*_names(lab), *_memory(lab), *_disk(lab), *_network(lab)]


def _system() -> Iterator[str]:
    release = platform.freedesktop_os_release()
    if not {"debian", "ubuntu"} & {release["ID"], *release.get("ID_LIKE", "").split()}:
        yield f"the lab runs on Debian or Ubuntu; this is {release['PRETTY_NAME']}"
    try:
        groups = Groups()
        for controller in ("memory", "cpu"):
            groups.folder(controller, Path())
    except HarnessError as error:
        yield str(error)


def _tools(lab: LabSpec) -> Iterator[str]:
    missing: dict[str, list[str]] = {}
    for tool, package in lab.host_packages.items():
        if shutil.which(tool) is None:
            missing.setdefault(package, []).append(tool)
    for package, tools in missing.items():
        yield f"{', '.join(tools)} not found on this computer: apt-get install {package}"


def _names(lab: LabSpec) -> Iterator[str]:
    if lab.record.exists():
        try:
            before = parse_spec(lab.record.read_text())
        except HarnessError:
            yield f"{lab.record} cannot be read; take the lab down (harness lab down) and up again"
            return
        if before.network != lab.network:
            yield (
                f"lab name '{lab.name}' is taken by a lab on {before.network}; "
                "take that one down or set another lab_node_lab"
            )
        return
    if is_foreign(lab.folder):
        yield f"name taken: {lab.folder} exists and is not a lab's; remove it or set another lab_node_lab"
    links = {entry["ifname"] for entry in json.loads(run("ip", "-j", "link"))}
    for name in sorted({lab.bridge, *(veth_name(lab.name, m.name) for m in lab.machines)} & links):
        yield f"name taken: a network interface '{name}' exists; remove it or set another lab_node_lab"
    taken = Groups().folder("memory", lab.group)
    if taken.exists():
        yield f"name taken: cgroup {taken} exists; run harness lab down, or set another lab_node_lab"


def is_foreign(folder: Path) -> bool:
    """Whether a folder in a lab's place was never one; an interrupted claim leaves a draft of its record."""
    return folder.exists() and any(
        path.name != "lab.json" and not path.name.startswith(".lab.json.") for path in folder.iterdir()
    )


def _memory(lab: LabSpec) -> Iterator[str]:
    values = {line.split(":")[0]: line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines()}
    total, available = int(values["MemTotal"]) * 1024, int(values["MemAvailable"]) * 1024
    loaded = lab.models_memory + DEPLOYED_BYTES * len(lab.machines)
    if lab.models_memory and loaded > total:
        yield (
            f"memory: the largest model and {len(lab.machines)} machines need {gib(loaded)}, "
            f"and this computer has {gib(total)}"
        )
    needed = MACHINE_RESIDENT_BYTES * len(lab.missing)
    if needed > available:
        yield (
            f"{len(lab.missing)} machines need {gib(needed)} of memory to boot and {gib(available)} is "
            "available: end something or ask for fewer nodes"
        )


def _disk(lab: LabSpec) -> Iterator[str]:
    planned = [
        (lab.images, IMAGE_BYTES * len(missing_images(lab)), "images"),
        (lab.folder, 0 if lab.swap_file.exists() else lab.swap, "swap"),
        (lab.folder, lab.machine_disk * len(lab.missing), "machines"),
        (lab.models, lab.models_disk, "models"),
    ]
    by_device: dict[int, list[tuple[Path, int, str]]] = {}
    for path, size, what in planned:
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        by_device.setdefault(existing.stat().st_dev, []).append((existing, size, what))
    for parts in by_device.values():
        total, free = sum(size for _, size, _ in parts), shutil.disk_usage(parts[0][0]).free
        if total > free:
            sums = " + ".join(f"{what} {gib(size)}" for _, size, what in parts if size)
            yield (
                f"disk: {sums} = {gib(total)}, and {parts[0][0]} has {gib(free)}: free some, or set "
                "LLAMA_HARNESS_CACHE"
            )


def _network(lab: LabSpec) -> Iterator[str]:
    routes = json.loads(run("ip", "-j", "-4", "route", "show", "table", "all"))
    for device, network in overlaps(lab.network, routes, {lab.bridge} if lab.record.exists() else set()):
        yield f"subnet taken: lab_node_network {lab.network} overlaps {network} on {device}; choose another"


def overlaps(
    wanted: IPv4Network, routes: list[dict[str, str]], ignore: Iterable[str]
) -> list[tuple[str, IPv4Network]]:
    """Routes of `ip -j route` that share an address with ``wanted``, without default routes."""
    by_device: dict[str, IPv4Network] = {}
    for route in routes:
        destination, device = str(route.get("dst", "default")), str(route.get("dev", "?"))
        if destination == "default" or device in ignore:
            continue
        network = IPv4Network(destination, strict=False)
        if network.prefixlen > 0 and network.overlaps(wanted):
            by_device.setdefault(device, network)
    return list(by_device.items())
