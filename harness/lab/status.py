"""What stands of a lab now, read without touching a machine."""

import json
from pathlib import Path

from pydantic import BaseModel

from harness.errors import HarnessError
from harness.lab.cgroup import Groups
from harness.lab.machine import Machine
from harness.lab.shell import run, succeeds
from harness.lab.spec import LabSpec, parse_spec, veth_name


class MachineStatus(BaseModel):
    """One machine as it is now; sizes in bytes."""

    machine: str
    address: str
    state: str
    boots: int = 0
    memory_limit: int | None = None
    memory_used: int = 0
    swap_used: int = 0
    rate_bits: int | None = None
    """Bits per second that its cable is held to; None is not shaped."""
    image: str = ""


def lab_status(folder: Path) -> tuple[LabSpec | None, list[MachineStatus]]:
    """The lab in ``folder`` and each of its machines; no lab where nothing stands."""
    record = folder / "lab.json"
    if not record.exists():
        return None, []
    lab = parse_spec(record.read_text())
    return lab, [_machine_status(Machine(lab, spec.name), str(spec.address)) for spec in lab.machines]


def _machine_status(machine: Machine, address: str) -> MachineStatus:
    if not machine.record.exists():
        return MachineStatus(machine=machine.name, address=address, state="absent")
    _, image = machine.read()
    status = MachineStatus(machine=machine.name, address=address, state=machine.state(), image=image.name)
    if machine.state_file.exists():
        status.boots = json.loads(machine.state_file.read_text())["boots"]
    try:
        usage = Groups().usage(machine.group)
    except (HarnessError, FileNotFoundError):
        return status
    status.memory_limit, status.memory_used, status.swap_used = usage.limit, usage.used, usage.swap
    status.rate_bits = link_rate(veth_name(machine.lab.name, machine.name))
    return status


def link_rate(device: str) -> int | None:
    """Bits per second of the token bucket on ``device``."""
    if not succeeds("ip", "link", "show", device):
        return None
    for discipline in json.loads(run("tc", "-j", "qdisc", "show", "dev", device)):
        if discipline["kind"] == "tbf":
            return int(discipline["options"]["rate"]) * 8
    return None
