"""Steps of the role ``lab_node`` whose order matters: ``python -m harness.lab STEP [MACHINE] < lab.json``.

Each prints ``{"changed": ...}``; on an error it prints a line for each problem to standard error and
exits with 1.
"""

import json
import sys
from collections.abc import Callable

from harness.errors import HarnessError
from harness.lab.image import build_image, wanted_image
from harness.lab.machine import Machine, make, start, wait_until_reachable
from harness.lab.preflight import obstacles
from harness.lab.running import retune
from harness.lab.shared import claim, down, locked, shared_up
from harness.lab.spec import LabSpec, parse_spec


def _preflight(lab: LabSpec) -> None:
    if lines := obstacles(lab):
        raise HarnessError("\n".join(lines))


def _keep(machine: Machine) -> bool:
    spec = machine.lab.machine(machine.name)
    changed = make(machine, spec, wanted_image(machine.lab, spec.suite))
    return start(machine) or retune(machine) or changed


LAB_STEPS: dict[str, Callable[[LabSpec], bool | None]] = {
    "preflight": _preflight,
    "claim": claim,
    "image": build_image,
    "shared": shared_up,
    "down": down,
}
MACHINE_STEPS: dict[str, Callable[[Machine], bool | None]] = {"keep": _keep, "wait": wait_until_reachable}
_UNLOCKED = ("preflight", "image", "wait")
"""Steps that change nothing of the lab, or may take minutes."""


def step(lab: LabSpec, name: str, machine: str | None) -> bool:
    """Run one step; returns whether it changed anything.

    Raises:
        HarnessError: there is no such step, or it failed.
    """
    if name not in (LAB_STEPS if machine is None else MACHINE_STEPS):
        raise HarnessError(f"no step '{name}'; there are {', '.join([*LAB_STEPS, *MACHINE_STEPS])}")
    with locked(lab, "none" if name in _UNLOCKED else "alone" if name == "down" else "shared") as recorded:
        if (machine is not None or name == "shared") and not lab.record.exists():
            raise HarnessError(f"lab {lab.name} was taken down before this step")
        if machine is not None:
            return bool(MACHINE_STEPS[name](Machine(recorded, machine)))
        return bool(LAB_STEPS[name](lab if name in ("preflight", "claim", "image") else recorded))


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
