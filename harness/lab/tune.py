"""Bring a running machine's limits and link rate to what is recorded."""

from harness.errors import HarnessError
from harness.lab import link
from harness.lab.cgroup import Groups
from harness.lab.machine import Machine, apply_limits
from harness.lab.spec import veth_name
from harness.lab.status import link_rate


def retune(machine: Machine) -> bool:
    """Put limits and rate in force where they are not; tells whether anything changed."""
    if machine.state() != "running":  # a machine that boots reads them by itself
        return False
    spec, _ = machine.read()
    groups = Groups()
    before = limits(groups, machine)
    apply_limits(machine)
    changed = limits(groups, machine) != before
    wanted = int(link.bits_per_second(spec.rate)) if spec.rate else None
    if link_rate(veth_name(machine.lab.name, machine.name)) != wanted:
        link.shape(machine.lab, spec, inside(machine))
        changed = True
    return changed


def limits(groups: Groups, machine: Machine) -> tuple[str, ...]:
    """The limits in force, as the kernel writes them."""
    memory, cpu = groups.folder("memory", machine.group), groups.folder("cpu", machine.group)
    names = [
        memory / "memory.max",
        memory / "memory.swap.max",
        memory / "memory.limit_in_bytes",
        memory / "memory.memsw.limit_in_bytes",
        cpu / "cpu.max",
        cpu / "cpu.cfs_quota_us",
    ]
    return tuple(path.read_text().strip() for path in names if path.exists())


def inside(machine: Machine) -> tuple[str, ...]:
    """Prefix that runs a command in the network of a running machine."""
    pid = machine.supervisor()
    if pid is None:
        raise HarnessError(f"{machine.name}: nothing keeps it up; harness lab up starts it")
    # The namespace's file is a mount that only the supervisor sees.
    return ("nsenter", f"--target={pid}", "--mount", "nsenter", f"--net={machine.folder / 'netns'}")
