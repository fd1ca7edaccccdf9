"""``harness lab``: starts, stops and shows the lab's machines."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import JsonOption
from harness.errors import HarnessError
from harness.settings import DEFAULT_INVENTORY, PLAYBOOKS

if TYPE_CHECKING:
    from rich.table import Table

    from harness.cluster.inventory import Inventory
    from harness.lab.running import MachineStatus

app = typer.Typer(help="Systemd machines on this computer, for real tests.", no_args_is_help=True)

SMALLEST = "smoke"
"""The shipped profile with the smallest models."""
_RUNTIME_SHARE = 1.02
"""A loaded model needs at least this much of its file; the planner says exactly, once a lab is up."""

_Inventory = Annotated[Path, typer.Option(help="Inventory of the lab.", envvar="HARNESS_INVENTORY")]
_Nodes = Annotated[int | None, typer.Option(min=1, help="Only the first N nodes of the inventory.")]


@app.command()
def up(
    inventory: _Inventory = DEFAULT_INVENTORY,
    nodes: _Nodes = None,
    profile: Annotated[
        str | None, typer.Option(help="First check that this profile's models fit too.")
    ] = None,
) -> None:
    """Boot the lab; machines that are up stay as they are."""
    needs = _needs(profile) if profile else {}
    if profile not in (None, SMALLEST):
        try:
            _play(inventory, "checked", nodes, "Checking this computer", needs)
        except HarnessError as error:
            raise HarnessError(f"{error}{_advice(inventory, nodes)}") from None
    _play(inventory, "present", nodes, "Bringing the lab up", needs)
    _print_status(inventory)


def _needs(profile: str) -> dict[str, str]:
    """Variables of the role: disk and memory that a profile's models need on this computer."""
    from harness.models import bytes_to_write, model_bytes
    from harness.trials.profile.profile import load_profile

    names = load_profile(profile)[2].model_names
    return {
        "lab_node_models_disk": str(sum(map(bytes_to_write, names))),
        "lab_node_models_memory": str(round(max(map(model_bytes, names)) * _RUNTIME_SHARE)),
    }


def _advice(inventory: Path, nodes: int | None) -> str:
    try:
        _play(inventory, "checked", nodes, "Checking what fits", _needs(SMALLEST))
    except HarnessError:
        return ""
    return f"; the profile {SMALLEST} fits: PROFILE={SMALLEST}"


@app.command()
def down(inventory: _Inventory = DEFAULT_INVENTORY) -> None:
    """Remove the lab and everything it took from this computer; images and models stay cached."""
    _play(inventory, "absent", None, "Taking the lab down")
    print("nothing of the lab is left")


@app.command()
def status(inventory: _Inventory = DEFAULT_INVENTORY, as_json: JsonOption = False) -> None:
    """Each machine: state, memory, swap, link rate."""
    _print_status(inventory, as_json)


def _play(
    inventory: Path, state: str, nodes: int | None, title: str, variables: Mapping[str, str] | None = None
) -> None:
    from harness.cluster.ansible import run_playbook

    names = list(_lab_inventory(inventory).nodes)
    if nodes is not None and nodes > len(names):
        raise HarnessError(
            f"--nodes {nodes}: inventory {inventory} has {len(names)} nodes ({', '.join(names)})"
        )
    limit = ",".join(names[:nodes]) if nodes else None
    run_playbook(
        PLAYBOOKS / "lab.yml", inventory, {"lab_node_state": state, **(variables or {})}, limit, title
    )


def _lab_inventory(path: Path) -> "Inventory":
    """The inventory of a lab.

    Raises:
        HarnessError: it describes real machines.
    """
    from harness.cluster.inventory import load_inventory

    inventory = load_inventory(path)
    if not all("lab_node_lab" in node.variables for node in inventory.nodes.values()):
        raise HarnessError(
            f"inventory {path} sets no lab_node_lab, so it describes real machines, not a lab on this "
            f"computer; deploy to them with harness deploy --inventory {path}"
        )
    return inventory


def _print_status(inventory: Path, as_json: bool = False) -> None:
    from rich.console import Console

    from harness.lab.running import lab_status
    from harness.lab.spec import lab_folder

    lab, machines = lab_status(lab_folder(next(iter(_lab_inventory(inventory).nodes.values())).variables))
    if as_json:
        print(json.dumps([machine.model_dump() for machine in machines], indent=2))
    elif lab is None:
        print("the lab is down")
    else:
        Console().print(_table(f"lab {lab.name} on {lab.network}", machines))


def _table(title: str, machines: "list[MachineStatus]") -> "Table":
    from rich.table import Table

    table = Table("machine", "address", "state", "memory", "limit", "swap", "link", title=title)
    for machine in machines:
        table.add_row(
            machine.machine,
            machine.address,
            machine.state,
            _mib(machine.memory_used),
            _mib(machine.memory_limit) if machine.memory_limit else "none",
            _mib(machine.swap_used),
            f"{machine.rate_bits / 1e9:g} Gbit/s" if machine.rate_bits else "not shaped",
        )
    return table


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
