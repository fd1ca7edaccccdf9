"""The kinds of trials. A kind is a step in ``profile/steps.py``, a module here, and a line in the table."""

from collections.abc import Awaitable, Callable
from typing import Any

from harness.trials.context import Context, TrialResult
from harness.trials.kinds.coordinator_steps import run_unload
from harness.trials.kinds.fault import run_fault
from harness.trials.kinds.inference import run_inference, run_pool
from harness.trials.kinds.load import run_load
from harness.trials.kinds.parity import run_parity
from harness.trials.kinds.release_switch import run_pin
from harness.trials.kinds.soak import run_soak
from harness.trials.profile.steps import Step

_KINDS: dict[str, Callable[[Context, str, Any], Awaitable[TrialResult]]] = {
    "pool": run_pool,
    "load": run_load,
    "inference": run_inference,
    "soak": run_soak,
    "parity": run_parity,
    "fault": run_fault,
    "pin": run_pin,
    "unload": run_unload,
}


async def run_step(ctx: Context, trial: str, step: Step) -> TrialResult:
    """Run one trial, whose requests and events are recorded under ``trial``; HarnessError where it failed."""
    return await _KINDS[step.kind](ctx, trial, step)
