"""The pin trial: every node changes over to another build, by the same playbook that an operator runs."""

import asyncio
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from harness.cluster.ansible import run_playbook
from harness.cluster.ssh import read_state
from harness.contracts.run_records import Outcome
from harness.errors import HarnessError
from harness.settings import PLAYBOOKS
from harness.trials.context import Context, Finding
from harness.trials.profile.profile import Profile
from harness.trials.profile.steps import InferenceStep, LoadStep, PinStep, Step, UnloadStep

ROUNDS = 3
_PROMPT_TOKENS, _GENERATED_TOKENS, _REPEATS = 35, 16, 2


def with_pins(profile: Profile, pins: Sequence[int], model: str) -> Profile:
    """The profile, and at its end each pin in turn, ``ROUNDS`` times, then the first one again.

    Args:
        pins: builds; the first is the one that runs now.
        model: what is loaded, cold, and asked on each.
    """
    rounds = [step for _ in range(ROUNDS) for pin in pins for step in _on(pin, model)]
    back = PinStep(kind="pin", model=model, build=pins[0])
    return profile.model_copy(update={"trials": [*profile.trials, *rounds, back]})


def _on(pin: int, model: str) -> list[Step]:
    return [
        PinStep(kind="pin", model=model, build=pin),
        LoadStep(kind="load", model=model, cache="cold"),
        InferenceStep(
            kind="inference",
            model=model,
            prompt_tokens=_PROMPT_TOKENS,
            generated_tokens=_GENERATED_TOKENS,
            repeats=_REPEATS,
        ),
        UnloadStep(kind="unload", model=model),
    ]


async def run_pin(ctx: Context, trial: str, step: PinStep) -> Finding:
    """Run playbooks/upgrade.yml; passes when every backend and the head node then have the build."""
    ctx.say(f"changing over to build {step.build}")
    ctx.loaded = None
    # Its progress would write over the run's own.
    upgrade = partial(
        run_playbook,
        PLAYBOOKS / "upgrade.yml",
        ctx.inventory.path,
        {"llama_cpp_build": step.build},
        title=trial,
        console=Console(quiet=True),
    )
    try:
        done = await asyncio.to_thread(upgrade)
    except HarnessError as error:
        return Finding(Outcome.FAILED, f"build {step.build}: {error}")
    nodes = {node.name: node for node in [*ctx.inventory.backends, ctx.inventory.head]}
    states = await asyncio.gather(*map(read_state, nodes.values()))
    others = {
        name: state.facts.build
        for name, state in zip(nodes, states, strict=True)
        if state.facts.build != step.build
    }
    metrics = {"pin_s": done.seconds}
    if others:
        seen = ", ".join(f"{name} has {build}" for name, build in others.items())
        return Finding(Outcome.FAILED, f"build {step.build} is not everywhere: {seen}", metrics=metrics)
    return Finding(Outcome.PASSED, f"build {step.build} on {len(nodes)} nodes", metrics=metrics)
