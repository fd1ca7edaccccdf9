"""The lab around a trial: a machine's memory limit while it is starved, and the stated rate of its link."""

import mmap

from harness.cluster.inventory import Inventory
from harness.lab.cgroup import Groups
from harness.lab.link import bits_per_second
from harness.lab.spec import LabSpec, lab_folder, parse_spec


def lab_of(inventory: Inventory) -> LabSpec | None:
    """The lab on this computer that an inventory describes; None where it names none or it is not up."""
    variables = inventory.head.variables
    record = lab_folder(variables) / "lab.json"
    return parse_spec(record.read_text()) if "lab_node_lab" in variables and record.exists() else None


def lab_memory_limit(lab: LabSpec, node: str, memory: int | None) -> None:
    """Hold a machine to ``memory`` bytes, swap beside it; None gives it back what the lab promised.

    Raises:
        HarnessError: the lab has no such machine, or the kernel refuses the limit.
    """
    machine = lab.machine(node)
    Groups().limit(lab.group / node, memory or machine.memory, lab.swap, machine.cpu)


def restore_memory(lab: LabSpec) -> list[str]:
    """Give every machine that is up the memory that the lab promised; the names of those that had less.

    Raises:
        HarnessError: the kernel refuses it.
    """
    starved = []
    for machine in lab.machines:
        group = lab.group / machine.name
        if Groups().folder("memory", group).exists():
            limit = Groups().usage(group).limit
            lab_memory_limit(lab, machine.name, None)
            if limit and limit <= machine.memory - mmap.PAGESIZE:  # the kernel counts whole pages
                starved.append(machine.name)
    return starved


def stated_rate(lab: LabSpec | None, node: str) -> float | None:
    """Bits per second that a lab node's link is shaped to; None where nothing is stated."""
    rate = lab.machine(node).rate if lab else ""
    return bits_per_second(rate) if rate else None
