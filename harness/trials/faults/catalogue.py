"""The faults that a profile can ask for, by name, and how each is made for a node."""

from harness.errors import HarnessError
from harness.inventory import Node
from harness.lab.spec import LabSpec
from harness.runs.schema import CoordinatorState
from harness.trials.faults.fault import Fault
from harness.trials.faults.files import SmallCacheDisk
from harness.trials.faults.links import CutLink, SlowLink
from harness.trials.faults.memory import SqueezeMemory, StarveIntoSwap
from harness.trials.faults.processes import FreezeBackend, KillBackend, KillCoordinator
from harness.trials.faults.starts import ClosedPort, OtherBuild, TakenPort, WrongFlag
from harness.trials.steps import FaultStep

STARVED_BYTES = 160 << 20
"""What a starved machine is held to, where the profile does not say."""

_SIMPLE: dict[str, type[Fault]] = {
    kind.kind: kind for kind in (KillBackend, FreezeBackend, ClosedPort, TakenPort, WrongFlag)
}


def make_fault(
    step: FaultStep, node: Node, head: Node, lab: LabSpec | None, state: CoordinatorState | None
) -> Fault:
    """The fault that a step asks for.

    Args:
        lab: the lab that the inventory's machines are; None for real ones.
        state: of the coordinator that is up, for faults that concern it.

    Raises:
        HarnessError: the step lacks what this fault needs.
    """
    if step.fault in _SIMPLE:
        return _SIMPLE[step.fault](node)
    match step.fault:
        case "kill-coordinator":
            if state is None or state.pid is None:
                raise HarnessError(
                    "kill-coordinator needs a coordinator that is up: moment prompt or generating"
                )
            return KillCoordinator(head, state.pid, 1)
        case "squeeze-memory":
            return SqueezeMemory(node, lab=lab)
        case "starve-into-swap":
            return StarveIntoSwap(node, step.memory or STARVED_BYTES, lab)
        case "cut-link":
            return CutLink(node, head, lab)
        case "slow-link":
            return SlowLink(node, head, lab=lab)
        case "small-cache-disk":
            return SmallCacheDisk(node, lab=lab)
        case "other-build":
            if step.build is None:
                raise HarnessError("other-build needs 'build': another one that is installed on the node")
            return OtherBuild(node, step.build)
    raise HarnessError(f"no fault '{step.fault}'")
