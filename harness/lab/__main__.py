"""Steps of the role ``lab_node``: ``python -m harness.lab STEP [MACHINE] < lab.json``.

Each prints ``{"changed": ...}``; what a person can act on goes to standard error in one line each, exit 1.
"""

import json
import sys
from collections.abc import Callable

from harness.errors import HarnessError
from harness.lab.build import build_image
from harness.lab.ground import claim, down, ground_up, held
from harness.lab.image import wanted_image
from harness.lab.machine import Machine, make, start
from harness.lab.preflight import obstacles
from harness.lab.reach import wait_until_reachable
from harness.lab.spec import LabSpec, parse_spec
from harness.lab.tune import retune


def _preflight(lab: LabSpec) -> bool:
    if found := obstacles(lab):
        raise HarnessError("\n".join(found))
    return False


def _keep(machine: Machine) -> bool:
    changed = make(machine, machine.lab.machine(machine.name), wanted_image(machine.lab))
    return start(machine) or retune(machine) or changed


def _wait(machine: Machine) -> bool:
    wait_until_reachable(machine)
    return False


LAB_STEPS: dict[str, Callable[[LabSpec], bool]] = {
    "preflight": _preflight,
    "claim": claim,
    "image": build_image,
    "ground": ground_up,
    "down": down,
}
MACHINE_STEPS: dict[str, Callable[[Machine], bool]] = {
    "keep": _keep,
    "wait": _wait,
}
_UNLOCKED = ("preflight", "image", "wait")
"""Steps that touch nothing of the lab's, or may take minutes."""


def step(lab: LabSpec, name: str, machine: str | None) -> bool:
    """Run one step; tells whether it changed anything.

    Raises:
        HarnessError: there is no such step, or it failed.
    """
    if name not in (LAB_STEPS if machine is None else MACHINE_STEPS):
        raise HarnessError(f"no step '{name}'; there are {', '.join([*LAB_STEPS, *MACHINE_STEPS])}")
    with held(lab, "none" if name in _UNLOCKED else "alone" if name == "down" else "shared") as recorded:
        if (machine is not None or name == "ground") and not lab.record.exists():
            raise HarnessError(f"lab {lab.name} was taken down meanwhile")
        if machine is None:
            return LAB_STEPS[name](lab if name in ("preflight", "claim", "image") else recorded)
        return MACHINE_STEPS[name](Machine(recorded, machine))


def main(arguments: list[str]) -> int:
    """Run one step on the lab described on standard input."""
    try:
        name, *machine = arguments
        changed = step(parse_spec(sys.stdin.read()), name, machine[0] if machine else None)
    except HarnessError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"changed": changed}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
