"""The faults that a profile can ask for, by name, and how each is made for a node."""

from harness.cluster.inventory import Node
from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.diagnosis import FailureClass
from harness.errors import HarnessError
from harness.lab.spec import LabSpec
from harness.trials.faults.fault import Fault
from harness.trials.faults.links import CutLink, SlowLink
from harness.trials.faults.processes import (
    ClosedPort,
    FreezeBackend,
    KillBackend,
    KillCoordinator,
    OtherBuild,
    TakenPort,
    WrongFlag,
)
from harness.trials.faults.resources import SmallCacheDisk, SqueezeMemory, StarveIntoSwap
from harness.trials.profile.steps import FaultStep

STARVED_BYTES = 120 << 20
"""What a starved machine is held to, where the profile does not say."""

FAULTS: dict[str, type[Fault]] = {
    kind.kind: kind
    for kind in (
        KillBackend,
        FreezeBackend,
        KillCoordinator,
        SqueezeMemory,
        StarveIntoSwap,
        CutLink,
        SlowLink,
        SmallCacheDisk,
        OtherBuild,
        ClosedPort,
        TakenPort,
        WrongFlag,
    )
}


def cause_of(step: FaultStep) -> FailureClass | None:
    """The class that a diagnosis must have; None where the fault is no failure, such as a slow link."""
    cause = step.expected or FAULTS[step.fault].expected
    return None if cause is FailureClass.UNKNOWN else cause


def make_fault(
    step: FaultStep, node: Node, head: Node, lab: LabSpec | None, state: CoordinatorState | None
) -> Fault:
    """The fault that a step asks for.

    Args:
        lab: the lab that the inventory's machines are; None for real ones.
        state: of the coordinator that is up, for faults that concern it.

    Raises:
        HarnessError: there is no coordinator to kill.
    """
    match step.fault:
        case "kill-coordinator" if state is not None and state.pid is not None:
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
        case "other-build" if step.build is not None:
            return OtherBuild(node, step.build)
        case "kill-coordinator":
            raise HarnessError("kill-coordinator: the coordinator that was loaded has ended already")
        case name:
            return FAULTS[name](node)
