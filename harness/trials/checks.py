"""Before anything is touched: are the models there, is it one build everywhere, and can the models fit?"""

from collections.abc import Sequence
from typing import Any

from harness.cluster.inventory import Inventory, Node
from harness.contracts.run_records import NodeFacts
from harness.errors import HarnessError
from harness.lab.spec import LabSpec
from harness.trials.profile.profile import Profile
from harness.trials.profile.steps import FaultStep, LoadStep, ParityStep

RUNTIME_SHARE = 1.02
"""A loaded model needs at least this much of its file: KV cache and compute buffers come on top."""


def check_models(profile: Profile, known: dict[str, dict[str, Any]], url: str) -> None:
    """Every model of the profile is one that the router can serve.

    Raises:
        HarnessError: one is not.
    """
    for name in profile.model_names:
        if name not in known:
            raise HarnessError(
                f"router at {url} has no model '{name}'; it has: {', '.join(sorted(known)) or 'none'}. "
                f"Make it with `harness model synth` or `harness model fetch`, then bring it to the head "
                f"node with playbooks/models.yml"
            )


def check_builds(inventory: Inventory, facts: dict[str, NodeFacts]) -> None:
    """The coordinator and every backend run one build, and nodes of one platform the same binaries.

    rpc-server's greeting cannot tell builds of one protocol apart. Nodes without a manifest are let through:
    what they run was not deployed from here.

    Raises:
        HarnessError: a node runs something else than the head node.
    """
    head = facts[inventory.head.name]
    for node in inventory.backends:
        there = facts[node.name]
        if head.build is None or there.build is None:
            continue
        if (there.build, there.commit) != (head.build, head.commit):
            seen, wanted = f"llama.cpp {_build(there)}", _build(head)
        elif _shared(node, there, head) and _rpc_server(there) != _rpc_server(head):
            seen, wanted = f"another rpc-server ({_rpc_server(there)})", str(_rpc_server(head))
        else:
            continue
        raise HarnessError(
            f"{node.name} runs {seen} and {head.name} runs {wanted}: a coordinator and its backends must be "
            f"of one build; deploy again (harness deploy --inventory {inventory.path})"
        )


_NEEDS_A_LAB = ("starve-into-swap",)


def check_faults(profile: Profile, inventory: Inventory, lab: LabSpec | None) -> None:
    """Nobody's machines are hurt without their consent, and no fault is asked for that cannot be caused.

    Raises:
        HarnessError: the nodes are no lab and the profile does not allow faults, a fault needs a lab, or a
            node is none of the backends.
    """
    steps = [step for step in profile.trials if isinstance(step, FaultStep)]
    if steps and lab is None and not profile.faults_allowed:
        raise HarnessError(
            f"the profile causes faults ({steps[0].fault} on {steps[0].node}) and this inventory is no lab "
            "that is up here; 'faults_allowed: true' in the profile says that its machines may be hurt"
        )
    names = [node.name for node in inventory.backends]
    for step in steps:
        if lab is None and step.fault in _NEEDS_A_LAB:
            raise HarnessError(f"{step.fault} can be caused in a lab alone; take it out of the profile")
        if step.node not in names:
            raise HarnessError(f"{step.fault}: no backend '{step.node}'; there are: {', '.join(names)}")


def check_pins(pins: Sequence[int], build: int | None) -> None:
    """The first of the builds that are to be tried in turns is the one that runs.

    Raises:
        HarnessError: it is another one, or there is nothing to compare it with.
    """
    if pins and (pins[0] != build or len(set(pins)) < 2):
        raise HarnessError(
            f"--pins {','.join(map(str, pins))}: give the build that runs now first ({build}), then another"
        )


def _shared(node: Node, there: NodeFacts, head: NodeFacts) -> bool:
    """Whether the node's build was made once for it and the head node."""
    return there.platform == head.platform and not node.variables.get("llama_cpp_build_per_node")


def _build(facts: NodeFacts) -> str:
    return f"{facts.build} ({facts.commit or 'commit unknown'})"


def _rpc_server(facts: NodeFacts) -> str | None:
    sha256 = facts.binaries.get("rpc-server")
    return sha256 and sha256[:12]


def check_fit(
    profile: Profile, inventory: Inventory, facts: dict[str, NodeFacts], models: dict[str, dict[str, Any]]
) -> None:
    """No load of the profile is larger than the nodes it may use, save those that are meant to be.

    Raises:
        HarnessError: one is, with the bytes that are missing.
    """
    backends = [node.name for node in inventory.backends]
    for step in profile.trials:
        if not isinstance(step, LoadStep | ParityStep):
            continue
        size = int(models[step.model]["file_bytes"])
        if isinstance(step, ParityStep):  # First the head node has it whole, then the backends.
            _check_load(step.model, size, [inventory.head.name], facts)
        elif step.starve or step.may_not_fit or step.n_gpu_layers is not None:
            continue
        if isinstance(step.nodes, list):
            _check_load(step.model, size, [inventory.node(name).name for name in step.nodes], facts)
        elif step.nodes is None or step.nodes <= len(backends):
            _check_load(step.model, size, backends[: step.nodes], facts)


def _check_load(model: str, file_bytes: int, names: Sequence[str], facts: dict[str, NodeFacts]) -> None:
    available = {name: facts[name].memory_available_bytes or 0 for name in names}
    needed, total = int(file_bytes * RUNTIME_SHARE), sum(available.values())
    if needed > total:
        shown = ", ".join(f"{name} {_gib(size)}" for name, size in available.items())
        raise HarnessError(
            f"{model} cannot fit: it needs {_gib(needed)} and {shown} have {_gib(total)} available, "
            f"{_gib(needed - total)} too little; free memory there, add a backend or quantise further"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
