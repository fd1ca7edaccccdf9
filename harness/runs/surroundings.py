"""What else differs between two runs whose figures are compared: versions, nodes, models, plans, flags."""

from collections.abc import Iterator, Mapping

from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.plan import Plan
from harness.contracts.run_records import NodeFacts, RunManifest

_PLACES = ("--model", "--alias", "--rpc", "--device", "--tensor-split", "--host", "--port")
"""Flags that hold addresses and paths, or repeat the plan."""


def surroundings(first: RunManifest, other: RunManifest) -> Iterator[str]:
    """One line for each difference of inventory, profile, versions, nodes and models."""
    for name, before, after in (
        ("inventory", first.inventory, other.inventory),
        ("profile", first.profile, other.profile),
        ("harness", first.harness_version, other.harness_version),
        ("harness commit", first.harness_commit, other.harness_commit),
        ("order's seed", first.seed, other.seed),
    ):
        if before != after:
            yield f"{other.run}: {name} {_text(after)}, not {_text(before)}"
    if first.profile == other.profile and first.profile_text != other.profile_text:
        yield f"{other.run}: the text of profile {other.profile} is another"
    old, new = ({node.name: node for node in run.nodes} for run in (first, other))
    if removed := sorted(old.keys() - new.keys()):
        yield f"{other.run}: without {', '.join(removed)}"
    if added := sorted(new.keys() - old.keys()):
        yield f"{other.run}: also with {', '.join(added)}"
    for name in sorted(old.keys() & new.keys()):
        for line in _of_node(old[name], new[name]):
            yield f"{other.run}: {line}"
    for model in sorted(first.models.keys() & other.models.keys()):
        for what in ("file_bytes", "sha256", "quantisation"):
            before, after = (run.models[model].get(what) for run in (first, other))
            if before and after and before != after:
                yield f"{other.run}: {what.replace('_', ' ')} of {model} {_text(after)}, not {_text(before)}"


def loads_differ(
    run: str, first: Mapping[str, CoordinatorState], other: Mapping[str, CoordinatorState]
) -> Iterator[str]:
    """One line for each difference of plan and flags between the same loads.

    Args:
        run: the other run's name.
        first: coordinators of the first run, by the label of their trial.
        other: the same of the other run.
    """
    for what in sorted(first.keys() & other.keys()):
        before, after = first[what], other[what]
        if (old_split := _placed(before.plan)) != (new_split := _placed(after.plan)):
            yield f"{run}: {what} placed {new_split}, not {old_split}"
        old, new = _flags(before.argv), _flags(after.argv)
        for flag in sorted(old.keys() | new.keys()):
            if old.get(flag) != new.get(flag):
                yield f"{run}: {what} with {flag} {_text(new.get(flag))}, not {_text(old.get(flag))}"


def _of_node(before: NodeFacts, after: NodeFacts) -> Iterator[str]:
    for what, old, new in (
        ("llama.cpp", before.build, after.build),
        ("commit", before.commit, after.commit),
        ("address", before.address, after.address),
        ("memory limit", before.memory_limit_bytes, after.memory_limit_bytes),
        ("memory", before.memory_total_bytes, after.memory_total_bytes),
        ("processor", before.cpu, after.cpu),
        ("CPUs", before.cpus, after.cpus),
        ("accelerator", before.accelerator, after.accelerator),
        ("platform", before.platform, after.platform),
        ("link, bit/s,", before.link_bits_per_s, after.link_bits_per_s),
    ):
        if old != new:
            yield f"{what} of {before.name} {_text(new)}, not {_text(old)}"
    changed = sorted(
        name
        for name in before.binaries.keys() & after.binaries.keys()
        if before.binaries[name] != after.binaries[name]
    )
    if changed and before.commit == after.commit:
        yield f"binaries of {before.name} that hash otherwise: {', '.join(changed)}"


def _placed(plan: Plan | None) -> str:
    return ", ".join(f"{share.node} {share.layers}" for share in plan.shares) if plan else "nothing"


def _flags(argv: list[str]) -> dict[str, str]:
    """Flags of a command line with their values, without ``_PLACES``."""
    flags: dict[str, str] = {}
    flag = ""
    for word in argv[1:]:
        if word.startswith("-") and not word[1:2].isdigit():
            flag, flags[word] = word, "set"
        elif flag:
            flags[flag] = word
    return {flag: value for flag, value in flags.items() if flag not in _PLACES}


def _text(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) and value > 99_999 else str(value)
