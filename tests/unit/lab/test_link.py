"""The lab's cables and its bridge."""

import re
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from pathlib import Path

import pytest
from harness.lab import link
from harness.lab.spec import LabSpec, MachineSpec


def lab(name: str) -> LabSpec:
    machines = [
        MachineSpec(name=f"node{n}", address=IPv4Address(f"10.0.0.1{n}"), memory=2**30) for n in (1, 2)
    ]
    return LabSpec(name=name, network=IPv4Network("10.0.0.0/24"), cache=Path("/cache"), machines=machines)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been run."""
    commands: list[list[str]] = []

    def run(*argv: str | Path, stdin: str | None = None) -> str:
        commands.append([str(word) for word in argv])
        return '[{"addr_info": [], "flags": []}]'

    monkeypatch.setattr(link, "run", run)
    monkeypatch.setattr(link, "succeeds", lambda *argv: False)
    return commands


def addresses(commands: list[list[str]]) -> list[str]:
    """Hardware addresses of the devices that were made."""
    made = [argv for argv in commands if argv[:3] == ["ip", "link", "add"]]
    return [word for argv in made for before, word in pairwise(argv) if before == "address"]


def test_a_machine_that_boots_again_has_the_same_hardware_addresses(commands: list[list[str]]) -> None:
    for _ in range(2):
        link.plug(lab("t"), lab("t").machines[0], Path("/run/netns"))
    outer, inner, *again = addresses(commands)
    assert [outer, inner] == again
    assert outer != inner


def test_no_two_devices_of_any_lab_share_a_hardware_address(commands: list[list[str]]) -> None:
    for each in (lab("t"), lab("u")):
        link.bridge_up(each)
        for machine in each.machines:
            link.plug(each, machine, Path("/run/netns"))
    made = addresses(commands)
    assert len(made) == len(set(made)) == 10
    # The second digit 2: for one receiver, and given by an administrator, so no maker's card bears it.
    assert all(re.fullmatch(r"02(:[0-9a-f]{2}){5}", address) for address in made)
