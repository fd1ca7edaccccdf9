#!/usr/bin/python3 -IS
"""Loads NVIDIA's kernel modules and makes their device nodes.

systemd looks up the devices that a unit may open when the unit starts. Modules and nodes must be there
before, on every host, with or without nvidia-modprobe, udev rules and nvidia-persistenced. Minor numbers are
those of NVIDIA's documentation; nvidia-uvm gets a major number of its own at each load.

    gpu_devices.py MODULE...
"""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

# Drivers before 545 register the cards and their control device as nvidia-frontend.
CARD_NAMES = ("nvidia", "nvidia-frontend")
CONTROL_MINOR = 255


def read(path):
    """A file's text; empty where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def wanted_nodes(proc):
    """Names of the nodes of the loaded modules, each with its major and minor number."""
    characters = read(proc / "devices").partition("Block devices:")[0]
    majors = {name: int(major) for major, name in re.findall(r"^\s*(\d+) (nvidia\S*)$", characters, re.M)}
    cards = next((majors[name] for name in CARD_NAMES if name in majors), None)
    nodes = {}
    if cards is not None:
        nodes["nvidiactl"] = (cards, CONTROL_MINOR)
        for board in sorted((proc / "driver/nvidia/gpus").glob("*/information")):
            minor = re.search(r"^Device Minor:\s*(\d+)", read(board), re.M)
            if minor:
                nodes[f"nvidia{minor.group(1)}"] = (cards, int(minor.group(1)))
    if "nvidia-uvm" in majors:
        nodes["nvidia-uvm"] = (majors["nvidia-uvm"], 0)
        nodes["nvidia-uvm-tools"] = (majors["nvidia-uvm"], 1)
    return nodes


def is_node(path, numbers):
    """Whether ``path`` is the device of these numbers: a module loaded again may get another major."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISCHR(status.st_mode) and (os.major(status.st_rdev), os.minor(status.st_rdev)) == numbers


def make_nodes(proc, dev):
    """Make the missing nodes, with the owner and mode that the driver is configured for; their names."""
    options = dict(re.findall(r"^(\w+): (\d+)$", read(proc / "driver/nvidia/params"), re.M))
    made = []
    for name, numbers in wanted_nodes(proc).items():
        path = dev / name
        if is_node(path, numbers):
            continue
        path.unlink(missing_ok=True)
        os.mknod(path, stat.S_IFCHR, os.makedev(*numbers))
        os.chown(path, int(options.get("DeviceFileUID", 0)), int(options.get("DeviceFileGID", 0)))
        path.chmod(int(options.get("DeviceFileMode", 0o666)))
        made.append(name)
    return made


def main(modules, proc=Path("/proc"), dev=Path("/dev")):
    """Exit status: 1 where the driver is not there."""
    for module in modules:
        subprocess.run(["modprobe", module], check=False)
    made = make_nodes(proc, dev)
    nodes = wanted_nodes(proc)
    print(f"devices: {', '.join(nodes) or 'none'}; made: {', '.join(made) or 'none'}")
    if "nvidiactl" not in nodes or "nvidia-uvm" not in nodes:
        print(f"the kernel did not load {', '.join(modules)}: see its log", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
