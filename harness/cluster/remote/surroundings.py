"""Runs on a node: prints settings and exposure of its units, and its link. Python 3.8 alone."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

SYS_NET = pathlib.Path("/sys/class/net")
SETTINGS = (
    "User,Restart,RestartUSec,StartLimitBurst,OOMPolicy,OOMScoreAdjust,MemoryHigh,MemoryMax,MemorySwapMax,"
    "IPAddressAllow,IPAddressDeny,NoNewPrivileges,ProtectSystem,ProtectHome,PrivateDevices,IgnoreSIGPIPE"
)


def output(*command: str) -> str:
    """What a command prints; empty where the node has no such command or it fails."""
    # A login over SSH may leave out the folders where ip and tc are.
    path = {**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=30, env=path
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def settings(shown: str) -> dict[str, str]:
    """Properties that ``systemctl show`` printed."""
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def exposures(shown: str, units: list[str]) -> dict[str, float]:
    """Overall exposure of each unit, 0 (closed) to 10 (open), from systemd-analyze(1) ``security``."""
    rows = (line.split() for line in shown.splitlines())
    return {words[0]: float(words[1]) for words in rows if words and words[0] in units}


def interface(shown: str) -> str | None:
    """Name of the interface that ``ip -j address show to ADDRESS`` found."""
    found = json.loads(shown or "[]")
    return next((one["ifname"] for one in found if one.get("ifname")), None)


def link(name: str, disciplines: str, sys_net: pathlib.Path = SYS_NET) -> dict[str, Any]:
    """Bits per second of an interface: what a token bucket holds it to, else what its driver negotiated.

    An interface without a device has no rate of its own: the 10 Gbit/s of a veth are its driver's invention.
    """
    for discipline in json.loads(disciplines or "[]"):
        if discipline.get("kind") == "tbf":
            rate = 8.0 * int(discipline["options"]["rate"])
            return {"interface": name, "link_bits_per_s": rate, "link_source": "token bucket"}
    try:
        negotiated = int((sys_net / name / "speed").read_text())
    except (OSError, ValueError):
        negotiated = -1
    if negotiated <= 0 or not (sys_net / name / "device").exists():
        return {"interface": name}
    return {"interface": name, "link_bits_per_s": negotiated * 1e6, "link_source": "driver"}


def main(argument: dict[str, Any]) -> None:
    """Print what changes seldom on a node and takes a moment to ask for."""
    units: list[str] = argument["units"]
    name = interface(output("ip", "-j", "address", "show", "to", argument["address"]))
    found: dict[str, Any] = {
        "settings": {u: settings(output("systemctl", "show", u, "--property", SETTINGS)) for u in units},
        "exposure": exposures(output("systemd-analyze", "security", "--no-pager"), units),
    }
    if name:
        found.update(link(name, output("tc", "-j", "qdisc", "show", "dev", name)))
    print(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
