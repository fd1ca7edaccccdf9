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


def limit_memory(
    lab: LabSpec, node: str, memory: int, swap: int | None = None, deadline_s: float = 60
) -> None:
    """Limit a machine to ``memory`` bytes, with ``swap`` bytes beside it (the lab's own size by default).

    Raises:
        HarnessError: the lab has no such machine, or the kernel refuses the limit.
    """
    swap = lab.swap if swap is None else swap
    Groups().limit(lab.group / node, memory, swap, lab.machine(node).cpu, deadline_s)


def restore_memory(lab: LabSpec, node: str) -> None:
    """Give a machine the memory that the lab promised.

    Raises:
        HarnessError: the kernel refuses it.
    """
    limit_memory(lab, node, lab.machine(node).memory)


def restore_all_memory(lab: LabSpec) -> list[str]:
    """The same for every machine that is up; the names of those that had less.

    Raises:
        HarnessError: the kernel refuses it.
    """
    starved = []
    for machine in lab.machines:
        group = lab.group / machine.name
        if Groups().folder("memory", group).exists():
            limit = Groups().usage(group).limit
            restore_memory(lab, machine.name)
            if limit and limit <= machine.memory - mmap.PAGESIZE:  # the kernel counts whole pages
                starved.append(machine.name)
    return starved


def stated_rate(lab: LabSpec | None, node: str) -> float | None:
    """Bits per second that a lab node's link is shaped to; None where nothing is stated."""
    rate = lab.machine(node).rate if lab else ""
    return bits_per_second(rate) if rate else None
