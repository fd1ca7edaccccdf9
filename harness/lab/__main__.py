"""Steps of the role ``lab_node``: ``python -m harness.lab STEP [MACHINE] < lab.json``.

Each prints ``{"changed": ...}``; what a person can act on goes to standard error in one line each, exit 1.
"""

import json
import sys
from collections.abc import Callable

from harness.errors import HarnessError
from harness.lab.ground import claim, down, ground_up
from harness.lab.image import build_image, wanted_image
from harness.lab.machine import Machine, make, start, wait_until_reachable
from harness.lab.preflight import obstacles
from harness.lab.spec import LabSpec, parse_spec
from harness.lab.tune import retune


def _preflight(lab: LabSpec) -> bool:
    if found := obstacles(lab):
        raise HarnessError("\n".join(found))
    return False


def _make(machine: Machine) -> bool:
    return make(machine, machine.lab.machine(machine.name), wanted_image(machine.lab))


def _wait(machine: Machine) -> bool:
    wait_until_reachable(machine)
    return False


_LAB_STEPS: dict[str, Callable[[LabSpec], bool]] = {
    "preflight": _preflight,
    "claim": claim,
    "image": build_image,
    "ground": ground_up,
    "down": down,
}
_MACHINE_STEPS: dict[str, Callable[[Machine], bool]] = {
    "make": _make,
    "start": start,
    "tune": retune,
    "wait": _wait,
}


def main(arguments: list[str]) -> int:
    """Run one step on the lab described on standard input."""
    try:
        lab = parse_spec(sys.stdin.read())
        if len(arguments) == 1 and arguments[0] in _LAB_STEPS:
            changed = _LAB_STEPS[arguments[0]](lab)
        elif len(arguments) == 2 and arguments[0] in _MACHINE_STEPS:
            changed = _MACHINE_STEPS[arguments[0]](Machine(lab, arguments[1]))
        else:
            raise HarnessError(
                f"usage: python -m harness.lab {{{','.join([*_LAB_STEPS, *_MACHINE_STEPS])}}} [machine]"
            )
    except HarnessError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"changed": changed}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
