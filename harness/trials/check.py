"""Before anything is touched: are the models there, and can they fit?"""

from typing import Any

from harness.errors import HarnessError
from harness.inventory import Inventory
from harness.runs.schema import NodeFacts
from harness.trials.profile import LoadStep, Profile

RUNTIME_SHARE = 1.02
"""A loaded model needs at least this much of its file: KV cache and compute buffers come on top."""


def check_models(profile: Profile, known: dict[str, dict[str, Any]], url: str) -> None:
    """Every model of the profile is one that the router can serve.

    Raises:
        HarnessError: one is not.
    """
    for name in profile.models:
        if name not in known:
            raise HarnessError(
                f"router at {url} has no model '{name}'; it has: {', '.join(sorted(known)) or 'none'}. "
                f"Make it with `harness model synth` or `harness model fetch`, then bring it to the head "
                f"node with playbooks/models.yml"
            )


def check_fit(
    profile: Profile, inventory: Inventory, facts: dict[str, NodeFacts], models: dict[str, dict[str, Any]]
) -> None:
    """No load of the profile is larger than the nodes it may use, save those that are meant to be.

    Raises:
        HarnessError: one is, with the bytes that are missing.
    """
    for step in profile.trials:
        if isinstance(step, LoadStep) and step.starve is None and step.n_gpu_layers is None:
            _check_load(step, inventory, facts, int(models[step.model]["file_bytes"]))


def _check_load(step: LoadStep, inventory: Inventory, facts: dict[str, NodeFacts], file_bytes: int) -> None:
    names = [node.name for node in inventory.backends]
    if isinstance(step.nodes, list):
        names = [inventory.node(name).name for name in step.nodes]
    elif step.nodes is not None:
        if step.nodes > len(names):
            return
        names = names[: step.nodes]
    available = {name: facts[name].memory_available_bytes or 0 for name in names}
    needed, total = int(file_bytes * RUNTIME_SHARE), sum(available.values())
    if needed > total:
        shown = ", ".join(f"{name} {_gib(size)}" for name, size in available.items())
        raise HarnessError(
            f"{step.model} cannot fit: it needs {_gib(needed)} and {shown} have {_gib(total)} available, "
            f"{_gib(needed - total)} too little; free memory there, add a backend or quantise further"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
