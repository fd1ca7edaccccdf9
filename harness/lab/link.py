"""The lab's network: a bridge, a fence around it, and one cable per machine, shaped where asked."""

import hashlib
import json
import re
from pathlib import Path

from harness.lab.shell import run, succeeds
from harness.lab.spec import LabSpec, MachineSpec, veth_name

MACHINE_INTERFACE = "host0"
_RATE = {"k": 10**3, "m": 10**6, "g": 10**9}


def bridge_up(lab: LabSpec) -> bool:
    """Have the lab's bridge with this computer's address on it; tells whether anything changed."""
    changed = False
    if not succeeds("ip", "link", "show", lab.bridge):
        address = hardware_address(lab.name, lab.bridge)
        run("ip", "link", "add", lab.bridge, "address", address, "type", "bridge")
        changed = True
    state = json.loads(run("ip", "-j", "addr", "show", "dev", lab.bridge))[0]
    if str(lab.gateway) not in {entry.get("local") for entry in state["addr_info"]}:
        run("ip", "addr", "add", f"{lab.gateway}/{lab.network.prefixlen}", "dev", lab.bridge)
        changed = True
    if "UP" not in state["flags"]:
        run("ip", "link", "set", lab.bridge, "up")
        changed = True
    return changed


def bridge_down(lab: LabSpec) -> bool:
    """Remove the bridge; tells whether there was one."""
    if not succeeds("ip", "link", "show", lab.bridge):
        return False
    run("ip", "link", "delete", lab.bridge)
    return True


def fence_up(lab: LabSpec) -> bool:
    """Nothing is forwarded into the lab or out of it, whatever this computer forwards for others."""
    if succeeds("nft", "list", "chain", "inet", lab.table, "forward"):
        return False
    inside, outside = f'iifname "{lab.bridge}"', f'oifname "{lab.bridge}"'
    run(
        "nft",
        "-f",
        "-",
        stdin=f"""table inet {lab.table} {{
            chain forward {{
                type filter hook forward priority filter; policy accept;
                {inside} {outside} accept
                {inside} drop
                {outside} drop
            }}
        }}""",
    )
    return True


def fence_down(lab: LabSpec) -> bool:
    """Remove the fence; tells whether there was one."""
    if not succeeds("nft", "list", "table", "inet", lab.table):
        return False
    run("nft", "delete", "table", "inet", lab.table)
    return True


def hardware_address(lab: str, device: str) -> str:
    """MAC address of a device of the lab, the same whenever it is made: unicast, locally administered.

    One drawn anew at each boot would leave neighbours with a stale entry, and some seconds without an answer;
    and a bridge without one of its own takes the lowest of its cables', which come and go.
    """
    digest = hashlib.sha256(f"{lab} {device}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def plug(lab: LabSpec, machine: MachineSpec, namespace: Path) -> None:
    """Give a fresh network namespace (a file) its cable, address and rate."""
    cable = veth_name(lab.name, machine.name)
    outer = hardware_address(lab.name, cable)
    inner = hardware_address(lab.name, f"{machine.name} {MACHINE_INTERFACE}")
    peer = ("peer", "name", MACHINE_INTERFACE, "address", inner, "netns", namespace)
    run("ip", "link", "add", cable, "address", outer, "type", "veth", *peer)
    run("ip", "link", "set", cable, "master", lab.bridge, "up")
    inside = ("nsenter", f"--net={namespace}")
    address = f"{machine.address}/{lab.network.prefixlen}"
    run(*inside, "ip", "link", "set", "lo", "up")
    run(*inside, "ip", "addr", "add", address, "dev", MACHINE_INTERFACE)
    run(*inside, "ip", "link", "set", MACHINE_INTERFACE, "up")
    shape(lab, machine, inside)


def unplug(lab: LabSpec, machine: str) -> bool:
    """Remove a cable that a killed machine left; tells whether there was one."""
    cable = veth_name(lab.name, machine)
    # It may go by itself at any moment, with the last process of its namespace.
    return succeeds("ip", "link", "delete", cable)


def shape(lab: LabSpec, machine: MachineSpec, inside: tuple[str, ...]) -> None:
    """Set or lift the rate of a machine's cable in both directions."""
    ends: list[tuple[tuple[str, ...], str]] = [
        ((), veth_name(lab.name, machine.name)),
        (inside, MACHINE_INTERFACE),
    ]
    for prefix, device in ends:
        if machine.rate:
            run(*prefix, "tc", "qdisc", "replace", "dev", device, "root", *tbf(machine.rate))
        else:
            succeeds(*prefix, "tc", "qdisc", "delete", "dev", device, "root")


def tbf(rate: str) -> list[str]:
    """Token bucket of ``rate``: 4 ms of it in the bucket, 50 ms in the queue (tc-tbf(8))."""
    bits = bits_per_second(rate)
    burst = max(64 * 1024, int(bits / 8 * 0.004))
    return ["tbf", "rate", rate, "burst", str(burst), "latency", "50ms"]


def bits_per_second(rate: str) -> float:
    """The number in ``1gbit`` (decimal units, as tc counts)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg])bit", rate)
    if not found:
        raise ValueError(f"'{rate}' is not a rate such as 1gbit")
    return float(found[1]) * _RATE[found[2]]
