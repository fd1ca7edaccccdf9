"""The lab's network: a bridge, a firewall around it, and one cable per machine with its rate."""

import hashlib
import json
from pathlib import Path

from harness.lab.spec import LabSpec, MachineSpec, veth_name
from harness.lab.system import run, succeeds

MACHINE_INTERFACE = "host0"
_RATE = {"k": 10**3, "m": 10**6, "g": 10**9}


def bridge_up(lab: LabSpec) -> bool:
    """Make the lab's bridge with this computer's address on it; returns whether anything changed."""
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
    """Remove the bridge; returns whether there was one."""
    return succeeds("ip", "link", "delete", lab.bridge)


def firewall_up(lab: LabSpec) -> bool:
    """Forward nothing into the lab or out of it; returns whether that changed anything."""
    if succeeds("nft", "list", "chain", "inet", lab.table, "forward"):
        return False
    inside, outside = f'iifname "{lab.bridge}"', f'oifname "{lab.bridge}"'
    ruleset = f"""table inet {lab.table} {{
        chain forward {{
            type filter hook forward priority filter; policy accept;
            {inside} {outside} accept
            {inside} drop
            {outside} drop
        }}
    }}"""
    run("nft", "-f", "-", stdin=ruleset)
    return True


def firewall_down(lab: LabSpec) -> bool:
    """Remove the firewall; returns whether there was one."""
    return succeeds("nft", "delete", "table", "inet", lab.table)


def hardware_address(lab: str, device: str) -> str:
    """MAC address of a device of the lab, the same whenever it is made: unicast, locally administered.

    A random one at each boot would leave neighbours with a stale entry, and some seconds without an answer;
    a bridge without an address takes the lowest of its cables', which change.
    """
    digest = hashlib.sha256(f"{lab} {device}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def plug(lab: LabSpec, machine: MachineSpec, namespace: Path) -> None:
    """Give a fresh network namespace (a file) its cable, addresses and rate."""
    cable = veth_name(lab.name, machine.name)
    outer = hardware_address(lab.name, cable)
    inner = hardware_address(lab.name, f"{machine.name} {MACHINE_INTERFACE}")
    peer = ("peer", "name", MACHINE_INTERFACE, "address", inner, "netns", namespace)
    run("ip", "link", "add", cable, "address", outer, "type", "veth", *peer)
    run("ip", "link", "set", cable, "master", lab.bridge, "up")
    inside = ("nsenter", f"--net={namespace}")
    run(*inside, "ip", "link", "set", "lo", "up")
    if not machine.address_delay_s:
        add_addresses(lab, machine, namespace)
    run(*inside, "ip", "link", "set", MACHINE_INTERFACE, "up")
    shape(lab, machine, inside)


def add_addresses(lab: LabSpec, machine: MachineSpec, namespace: Path) -> None:
    """Give the machine's end of the cable its addresses."""
    for address in machine.addresses:
        added = ("addr", "add", f"{address}/{lab.network.prefixlen}", "dev", MACHINE_INTERFACE)
        run("nsenter", f"--net={namespace}", "ip", *added)


def unplug(lab: LabSpec, machine: str) -> bool:
    """Remove a cable that a killed machine left; returns whether there was one."""
    # The kernel may remove it at any moment, with the last process of its namespace.
    return succeeds("ip", "link", "delete", veth_name(lab.name, machine))


def shape(lab: LabSpec, machine: MachineSpec, inside: tuple[str, ...]) -> None:
    """Set or remove the rate limit of a machine's cable in both directions."""
    cable: tuple[str, ...] = ("dev", veth_name(lab.name, machine.name), "root")
    for prefix, end in (((), cable), (inside, ("dev", MACHINE_INTERFACE, "root"))):
        if machine.rate:
            run(*prefix, "tc", "qdisc", "replace", *end, *tbf(machine.rate))
        else:
            succeeds(*prefix, "tc", "qdisc", "delete", *end)


def shaped_rate(device: str) -> int | None:
    """Bits per second of the token bucket on ``device``; None where there is none, or no such device."""
    if not succeeds("ip", "link", "show", device):
        return None
    for discipline in json.loads(run("tc", "-j", "qdisc", "show", "dev", device)):
        if discipline["kind"] == "tbf":
            return int(discipline["options"]["rate"]) * 8
    return None


def tbf(rate: str) -> list[str]:
    """Token bucket of ``rate``: 4 ms of it in the bucket, 50 ms in the queue (tc-tbf(8))."""
    bits = bits_per_second(rate)
    burst = max(64 * 1024, int(bits / 8 * 0.004))
    return ["tbf", "rate", rate, "burst", str(burst), "latency", "50ms"]


def bits_per_second(rate: str) -> float:
    """The number in ``1gbit`` (decimal units, as tc counts)."""
    return float(rate.removesuffix("bit")[:-1]) * _RATE[rate[-4]]
