"""The pin trial: every node changes over to another build, by the same playbook that an operator runs."""

import asyncio
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from harness.cluster.ansible import run_playbook
from harness.cluster.node_inspection import read_state
from harness.contracts.run_records import Outcome
from harness.errors import HarnessError
from harness.settings import PLAYBOOKS
from harness.trials.context import Context, TrialResult
from harness.trials.profile.profile import Profile
from harness.trials.profile.steps import InferenceStep, LoadStep, PinStep, Step, UnloadStep

ROUNDS = 3


def with_pins(profile: Profile, pins: Sequence[int]) -> Profile:
    """The profile, and at its end each pin in turn, ``ROUNDS`` times, then the first one again.

    The model of the profile's question ``pins`` is loaded, cold, and answers on each.

    Args:
        pins: builds; the first is the one that runs now.

    Raises:
        HarnessError: the profile has no such question.
    """
    model = next((ask.model for ask in profile.questions if ask.ask == "pins" and ask.model), None)
    if model is None:
        raise HarnessError("--pins needs a profile with a question 'pins', as founding has it")
    rounds = [step for _ in range(ROUNDS) for pin in pins for step in _on(pin, model)]
    back = PinStep(kind="pin", model=model, build=pins[0])
    return profile.model_copy(update={"trials": [*profile.trials, *rounds, back]})


def _on(pin: int, model: str) -> list[Step]:
    return [
        PinStep(kind="pin", model=model, build=pin),
        LoadStep(kind="load", model=model, cache="cold"),
        InferenceStep(kind="inference", model=model, prompt_tokens=35, generated_tokens=16, repeats=2),
        UnloadStep(kind="unload", model=model),
    ]


async def run_pin(ctx: Context, trial: str, step: PinStep) -> TrialResult:
    """Run playbooks/upgrade.yml; passes when every backend and the head node then have the build."""
    ctx.say(f"changing over to build {step.build}")
    ctx.loaded = None
    # Its progress would write over the run's own.
    upgrade = partial(
        run_playbook,
        PLAYBOOKS / "upgrade.yml",
        ctx.inventory.path,
        {"llama_cpp_build": step.build, "router_force": True},  # the run that has the lease is this one
        title=trial,
        console=Console(quiet=True),
    )
    try:
        result = await asyncio.to_thread(upgrade)
    except HarnessError as error:
        return TrialResult(Outcome.FAILED, f"build {step.build}: {error}")
    nodes = {node.name: node for node in [*ctx.inventory.backends, ctx.inventory.head]}
    states = await asyncio.gather(*map(read_state, nodes.values()))
    built = zip(nodes, (state.facts.build for state in states), strict=True)
    others = {name: build for name, build in built if build != step.build}
    metrics = {"pin_s": result.seconds}
    if others:
        wrong = ", ".join(f"{name} has {build}" for name, build in others.items())
        return TrialResult(Outcome.FAILED, f"build {step.build} is not everywhere: {wrong}", metrics=metrics)
    return TrialResult(Outcome.PASSED, f"build {step.build} on {len(nodes)} nodes", metrics=metrics)
