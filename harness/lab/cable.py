"""A machine's cable while a trial plays with it: pulled, slowed, and as it was."""

import json

from harness.errors import HarnessError
from harness.lab.link import shape
from harness.lab.machine import Machine
from harness.lab.shell import run
from harness.lab.spec import LabSpec, veth_name
from harness.lab.tune import inside


def cut(lab: LabSpec, name: str) -> None:
    """Pull a machine's cable: nothing reaches it, and nothing it sends arrives.

    Raises:
        HarnessError: the lab has no such machine, or it is not up.
    """
    run("ip", "link", "set", _cable(lab, name), "down")


def mend(lab: LabSpec, name: str) -> bool:
    """Plug a machine's cable in again; tells whether it was pulled."""
    device = _cable(lab, name)
    pulled = "UP" not in json.loads(run("ip", "-j", "link", "show", "dev", device))[0]["flags"]
    if pulled:
        run("ip", "link", "set", device, "up")
    return pulled


def slow(lab: LabSpec, name: str, rate: str) -> None:
    """Hold a machine's link to ``rate`` (``100mbit``) in both directions."""
    machine = lab.machine(name).model_copy(update={"rate": rate})
    shape(lab, machine, inside(Machine(lab, name)))


def full_speed(lab: LabSpec, name: str) -> None:
    """Give a machine's link the rate that the lab states, or none."""
    shape(lab, lab.machine(name), inside(Machine(lab, name)))


def _cable(lab: LabSpec, name: str) -> str:
    if Machine(lab, lab.machine(name).name).supervisor() is None:
        raise HarnessError(f"{name}: nothing keeps it up; harness lab up starts it")
    return veth_name(lab.name, name)
