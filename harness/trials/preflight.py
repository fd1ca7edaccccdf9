"""Everything that a run settles before its first trial: who is there, does it fit, how long will it take."""

import asyncio
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import harness
from harness.cluster.inventory import Inventory
from harness.cluster.ssh import NodeState, read_state, with_surroundings
from harness.contracts.run_records import NodeFacts, RunManifest
from harness.errors import HarnessError
from harness.router_client.client import RouterClient
from harness.settings import REPOSITORY, shown_path
from harness.trials.checks import check_builds, check_faults, check_fit, check_models, check_pins
from harness.trials.estimate import earlier_durations, estimate
from harness.trials.formulas import FORMULAS
from harness.trials.lab import lab_of
from harness.trials.profile.profile import Profile

FREED_WITHIN_S = 3.0


@dataclass(frozen=True)
class Options:
    """What was typed."""

    profile: str
    inventory: Path
    reports: Path
    seed: int | None = None
    """Shuffle with this seed, whatever the profile says."""
    resume: str | None = None
    """A run to go on with, instead of a new one."""
    models: Mapping[str, str] = field(default_factory=dict)
    """In place of those that the profile's ``models`` names."""
    pins: tuple[int, ...] = ()
    """Builds to try in turns, the first of which runs now."""


@dataclass(frozen=True)
class Setting:
    """The cluster as it was found."""

    models: dict[str, dict[str, Any]]
    states: dict[str, NodeState]
    estimates_s: list[float]
    estimates_known: int
    """How many of the estimates come from earlier runs."""

    @property
    def facts(self) -> dict[str, NodeFacts]:
        """Facts by node."""
        return _facts(self.states)

    @property
    def clock_offset_ns(self) -> dict[str, int]:
        """Per node the clock's offset, where it is larger than what measuring it leaves open; else 0."""
        return {
            name: state.clock_offset_ns if abs(state.clock_offset_ns) > state.clock_error_ns else 0
            for name, state in self.states.items()
        }


async def _look(inventory: Inventory) -> dict[str, NodeState]:
    states = await asyncio.gather(*(read_state(node) for node in inventory.nodes.values()))
    return dict(zip(inventory.nodes, states, strict=True))


async def _complete(inventory: Inventory, states: dict[str, NodeState]) -> dict[str, NodeState]:
    facts = await asyncio.gather(
        *(with_surroundings(inventory.nodes[name], state.facts) for name, state in states.items())
    )
    return {
        name: replace(state, facts=full) for (name, state), full in zip(states.items(), facts, strict=True)
    }


def _facts(states: dict[str, NodeState]) -> dict[str, NodeFacts]:
    return {name: state.facts for name, state in states.items()}


async def settle(options: Options, profile: Profile, inventory: Inventory, router: RouterClient) -> Setting:
    """Look at the cluster and refuse what cannot work.

    The coordinator that may be up is unloaded: its memory is part of what the trials need.

    Raises:
        HarnessError: a node, the router or a model is not there, a node runs another build, or a model
            cannot fit.
    """
    models = await router.models()
    check_models(profile, models, router.address.url)
    await router.unload()
    states = await _look(inventory)
    check_builds(inventory, _facts(states))
    check_faults(profile, inventory, lab_of(inventory))
    check_pins(options.pins, _facts(states)[inventory.head.name].build)
    try:
        check_fit(profile, inventory, _facts(states), models)
    except HarnessError:
        # The backends of a coordinator that has just ended may still be giving their memory back.
        await asyncio.sleep(FREED_WITHIN_S)
        states = await _look(inventory)
        check_fit(profile, inventory, _facts(states), models)
    earlier = earlier_durations(options.reports, options.inventory)
    seconds, known = estimate(profile, models, earlier)
    used = {name: models[name] for name in profile.model_names}
    return Setting(used, await _complete(inventory, states), seconds, known)


def make_manifest(
    run: str, profile_name: str, text: str, options: Options, setting: Setting, seed: int | None
) -> RunManifest:
    """``run.json`` as it is when the run starts."""
    builds = sorted({str(facts.build) for facts in setting.facts.values() if facts.build})
    return RunManifest(
        run=run,
        profile=profile_name,
        profile_text=text,
        inventory=shown_path(options.inventory),
        started_ns=time.time_ns(),
        harness_version=harness.__version__,
        harness_commit=_commit(),
        command=["harness", *sys.argv[1:]],
        versions={"python": platform.python_version(), "llama.cpp": ", ".join(builds) or "unknown"},
        nodes=list(setting.facts.values()),
        models=setting.models,
        formulas=FORMULAS,
        estimate_s=sum(setting.estimates_s),
        seed=seed,
    )


def _commit() -> str | None:
    shown = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return shown.stdout.strip() or None if shown.returncode == 0 else None
