"""The cluster before a run: leased, inspected, checked, unloaded, and asked whether every load fits."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cluster.inventory import Inventory
from harness.cluster.node_inspection import NodeState, read_state, with_surroundings
from harness.contracts.coordinator_state import CoordinatorPhase
from harness.contracts.plan import LoadRequest
from harness.contracts.run_records import NodeFacts
from harness.errors import HarnessError
from harness.lab.spec import LabSpec
from harness.llama.releases.catalogue import catalogue
from harness.llama.releases.server_flags import check_server_flags
from harness.router_client.client import RouterClient, RouterRefusedError
from harness.trials.lab import lab_of
from harness.trials.profile.profile import Profile
from harness.trials.profile.steps import FaultStep, LoadStep, ParityStep, PinStep
from harness.trials.resume import Unfinished, check_same_cluster

FREED_WITHIN_S = 3.0
UNLOAD_S = 60.0
"""How long requests in flight may take before the coordinator is stopped all the same."""
ENDING_TRIES = 10
"""Seconds in which requests of others may end before the run is refused."""


@dataclass(frozen=True)
class ClusterSnapshot:
    """The cluster with no coordinator up."""

    models: dict[str, dict[str, Any]]
    """Those of the profile, as the router lists them."""
    facts: dict[str, NodeFacts]
    clock_offset_ns: dict[str, int]
    """Per node the clock's offset, where it is larger than the error of its measurement; else 0."""


async def run_preflight(
    profile: Profile,
    pins: tuple[int, ...],
    inventory: Inventory,
    router: RouterClient,
    *,
    resumed: Unfinished | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> ClusterSnapshot:
    """Inspect the cluster and refuse what cannot work.

    A coordinator that is up is unloaded, once all else is checked: the trials need its memory.

    Args:
        resumed: the run to go on with, which needs the nodes that it began on.
        force: unload though others use the coordinator: requests that do not end in time are stopped.
        say: called with a line before something takes long.

    Raises:
        HarnessError: a node, the router or a model is not there, a node runs another build, a pin may not be
            deployed, a model cannot fit, or others use the coordinator.
    """
    models = await router.models()
    check_models(profile, models, router.address.url)
    states = await _read_states(inventory)
    check_builds(inventory, {name: state.facts for name, state in states.items()})
    check_faults(profile, inventory, lab_of(inventory))
    build = states[inventory.head.name].facts.build
    check_pins(pins, build)
    check_flags(profile, build)
    for step in profile.trials:
        if isinstance(step, PinStep):
            catalogue().admit(step.build, _accepted_issues(inventory))
    if resumed:
        check_same_cluster(resumed, {name: state.facts for name, state in states.items()})
    try:
        await check_fit(profile, inventory, router)
    except RouterRefusedError:
        # The backends of a coordinator that has just ended may still be giving their memory back.
        await asyncio.sleep(FREED_WITHIN_S)
        await check_fit(profile, inventory, router)
    if await _unload(router, resumed is not None, force, say):
        states = await _read_states(inventory)
    facts = await asyncio.gather(
        *(with_surroundings(inventory.nodes[name], state.facts) for name, state in states.items())
    )
    return ClusterSnapshot(
        {name: models[name] for name in profile.model_names},
        dict(zip(states, facts, strict=True)),
        {
            name: state.clock_offset_ns if abs(state.clock_offset_ns) > state.clock_error_ns else 0
            for name, state in states.items()
        },
    )


async def _unload(router: RouterClient, resumed: bool, force: bool, say: Callable[[str], None]) -> bool:
    """Unload what is up; whether there was something."""
    for _ in range(ENDING_TRIES):  # Those of a run that was killed a moment ago are given up one by one.
        state = await router.coordinator()
        used = state.requests_in_flight + await router.waiting()
        if not used or force:
            break
        await asyncio.sleep(1)
    starting = state.phase is CoordinatorPhase.STARTING and not resumed
    if (used or starting) and not force:
        use = f"{used} requests of others are in flight or wait" if used else "it is being loaded for others"
        raise HarnessError(
            f"{use} ({state.model}) on the router at {router.address.url}: wait for their end, or stop them "
            "with --force; nothing was touched"
        )
    if used:
        say(f"{used} requests of others have {UNLOAD_S:.0f} s to end before {state.model} is unloaded")
    return (await router.unload(UNLOAD_S)).phase is not CoordinatorPhase.ABSENT


def _accepted_issues(inventory: Inventory) -> list[str]:
    accepted = inventory.head.variables.get("llama_cpp_accepted_issues", [])
    return accepted.split(",") if isinstance(accepted, str) else list(accepted)


async def _read_states(inventory: Inventory) -> dict[str, NodeState]:
    states = await asyncio.gather(*(read_state(node) for node in inventory.nodes.values()))
    return dict(zip(inventory.nodes, states, strict=True))


def check_models(profile: Profile, models: dict[str, dict[str, Any]], url: str) -> None:
    """Raise HarnessError where the router cannot serve a model of the profile."""
    for name in profile.model_names:
        if name not in models:
            raise HarnessError(
                f"router at {url} has no model '{name}'; it has: {', '.join(sorted(models)) or 'none'}. "
                f"Make it with `harness model synth` or `harness model fetch`, then bring it to the head "
                f"node with playbooks/models.yml"
            )


def check_builds(inventory: Inventory, facts: dict[str, NodeFacts]) -> None:
    """Raise HarnessError where a backend runs another build than the coordinator, or other binaries of it.

    rpc-server's greeting cannot tell builds of one protocol apart. Nodes without a manifest are let through:
    what they run was not deployed from here.
    """
    head = facts[inventory.head.name]
    for node in inventory.backends:
        node_facts = facts[node.name]
        if head.build is None or node_facts.build is None:
            continue
        # Whether one build was made for both.
        shared = node_facts.platform == head.platform and not node.variables.get("llama_cpp_build_per_node")
        if (node_facts.build, node_facts.commit) != (head.build, head.commit):
            actual, wanted = f"llama.cpp {_build(node_facts)}", _build(head)
        elif shared and _rpc_server(node_facts) != _rpc_server(head):
            actual, wanted = f"another rpc-server ({_rpc_server(node_facts)})", str(_rpc_server(head))
        else:
            continue
        raise HarnessError(
            f"{node.name} runs {actual} and {head.name} runs {wanted}: a coordinator and its backends must "
            f"be of one build; deploy again (harness deploy --inventory {inventory.path})"
        )


def check_faults(profile: Profile, inventory: Inventory, lab: LabSpec | None) -> None:
    """Raise HarnessError where neither a lab nor the profile allows faults, or one cannot be caused."""
    steps = [step for step in profile.trials if isinstance(step, FaultStep)]
    if steps and lab is None and not profile.faults_allowed:
        raise HarnessError(
            f"the profile causes faults ({steps[0].fault} on {steps[0].node}) and this inventory is no lab "
            "that is up here; 'faults_allowed: true' in the profile says that its machines may be hurt"
        )
    names = [node.name for node in inventory.backends]
    for step in steps:
        if lab is None and step.fault == "starve-into-swap":
            raise HarnessError(f"{step.fault} can be caused in a lab alone; take it out of the profile")
        if step.node not in names:
            raise HarnessError(f"{step.fault}: no backend '{step.node}'; there are: {', '.join(names)}")


def check_pins(pins: Sequence[int], build: int | None) -> None:
    """Raise HarnessError unless the first of the builds to try in turns is the one that runs."""
    if pins and (pins[0] != build or len(set(pins)) < 2):
        raise HarnessError(
            f"--pins {','.join(map(str, pins))}: give the build that runs now first ({build}), then another"
        )


def check_flags(profile: Profile, build: int | None) -> None:
    """Raise HarnessError where a trial gives llama-server an option that is not on the release's list."""
    for step in profile.trials:
        if isinstance(step, LoadStep | ParityStep):
            try:
                check_server_flags(step.flags, build)
            except HarnessError as error:
                raise HarnessError(f"the profile's {step.kind} of {step.model}: {error}") from None


def _build(facts: NodeFacts) -> str:
    return f"{facts.build} ({facts.commit or 'commit unknown'})"


def _rpc_server(facts: NodeFacts) -> str | None:
    sha256 = facts.binaries.get("rpc-server")
    return sha256 and sha256[:12]


async def check_fit(profile: Profile, inventory: Inventory, router: RouterClient) -> None:
    """The router can place every load of the profile, save those that are meant not to fit.

    Raises:
        RouterRefusedError: it cannot, with the bytes that are missing.
    """
    for request in {request.model_dump_json(): request for request in _loads(profile, inventory)}.values():
        await router.plan(request)


def _loads(profile: Profile, inventory: Inventory) -> Iterator[LoadRequest]:
    names = [node.name for node in inventory.backends]
    for step in profile.trials:
        parallel = 1
        if isinstance(step, LoadStep):
            if step.starve or step.may_not_fit or step.n_gpu_layers is not None:
                continue
            parallel = step.parallel
        elif not isinstance(step, ParityStep):
            continue
        elif inventory.head.name in names:  # First the head node has it whole, then the backends.
            yield LoadRequest(model=step.model, nodes=[inventory.head.name], context=step.context)
        nodes = step.nodes if isinstance(step.nodes, list) else names[: step.nodes]
        if not isinstance(step.nodes, int) or step.nodes <= len(names):
            yield LoadRequest(model=step.model, nodes=nodes or None, context=step.context, parallel=parallel)


LEASE_S = 20.0
RENEW_S = 5.0


@asynccontextmanager
async def cluster_lease(
    router: RouterClient, folder: Path, warn: Callable[[str], None]
) -> AsyncIterator[None]:
    """Hold the cluster for one run. One that is killed blocks others for ``LEASE_S``, but not its resumption.

    A router that restarts forgets the lease and is given it again.

    Args:
        folder: of the run; with this computer's name it identifies the run.
        warn: called when another run has taken the cluster meanwhile: both measure each other then.

    Raises:
        HarnessError: another run holds it, or the router does not answer.
    """
    place = hashlib.sha256(str(folder.parent.resolve()).encode()).hexdigest()[:8]
    owner = f"{folder.name[:120]} of {socket.gethostname()[:60]}, {place}"
    await router.lease(owner, LEASE_S)
    renewing = asyncio.create_task(_renew(router, owner, warn))
    try:
        yield
    finally:
        renewing.cancel()
        with suppress(HarnessError):
            await router.release_lease(owner)


async def _renew(router: RouterClient, owner: str, warn: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(RENEW_S)
        try:
            await router.lease(owner, LEASE_S)
        except RouterRefusedError as refusal:
            warn(f"this run's lease ran out, and another run has the cluster: {refusal}")
        except HarnessError:
            pass  # the router is away for a moment; the next round tries again
