"""How long a run will take: from stated rates, or from what earlier runs on the same inventory took."""

from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from harness.contracts.run_records import Outcome
from harness.errors import HarnessError
from harness.runs.read import read_manifest, read_trials
from harness.settings import shown_path
from harness.trials.profile.profile import Profile
from harness.trials.profile.steps import (
    FaultStep,
    LoadStep,
    ParityStep,
    PinStep,
    PoolStep,
    SoakStep,
    Step,
    UnloadStep,
)

COLD_BYTES_PER_S = 150e6
WARM_BYTES_PER_S = 400e6
DECODE_BYTES_PER_S = 6e9
"""Each generated token reads the whole model once."""
PROMPT_SPEEDUP = 3.0
"""Prompt tokens are computed in batches, faster than generated ones."""
UNKNOWN_BYTES = 500e6
"""Taken for a pool's model whose file the router does not see."""
STEP_S = 5.0
STARVED_SLOWDOWN = 5.0
FAULT_S = 20.0
"""From the injection until the backend serves again."""
PIN_S = 120.0
"""To change all nodes over to a build that a cache has."""


def assumptions() -> str:
    """The rates of an estimate without earlier runs, for people."""
    return (
        f"assuming loads at {COLD_BYTES_PER_S / 1e6:.0f} MB/s cold and "
        f"{WARM_BYTES_PER_S / 1e6:.0f} MB/s warm, tokens at {DECODE_BYTES_PER_S / 1e9:.0f} GB/s of model"
    )


def step_signature(step: Step) -> str:
    """What makes the durations of two trials comparable."""
    return step.model_dump_json(exclude={"deadline_s", "expected", "limits"})


def estimate(
    profile: Profile, models: dict[str, dict[str, Any]], earlier: dict[str, float]
) -> tuple[list[float], int]:
    """Seconds per trial, and how many of them are known from earlier runs."""
    seconds: list[float] = []
    known = 0
    starved = False
    for step in profile.trials:
        if isinstance(step, LoadStep):
            starved = step.starve is not None
        if (seen := earlier.get(step_signature(step))) is not None:
            known += 1
            seconds.append(seen)
        else:
            slow = STARVED_SLOWDOWN if starved else 1.0
            size = float(models[step.model].get("file_bytes") or UNKNOWN_BYTES)
            seconds.append(_assumed(step, size) * slow + STEP_S)
    return seconds, known


def _assumed(step: Step, size: float) -> float:
    if isinstance(step, UnloadStep):
        return 0.0
    if isinstance(step, PinStep):
        return PIN_S
    if isinstance(step, FaultStep):
        return size / COLD_BYTES_PER_S + FAULT_S
    if isinstance(step, LoadStep):
        return size / (COLD_BYTES_PER_S if step.cache == "cold" else WARM_BYTES_PER_S)
    token_s = size / DECODE_BYTES_PER_S
    if isinstance(step, ParityStep):
        return 2 * (size / COLD_BYTES_PER_S + step.tokens * token_s)
    repeats = (step.requests or 1) if isinstance(step, PoolStep | SoakStep) else step.repeats
    prompt_s = step.prompt_tokens * token_s / PROMPT_SPEEDUP
    requests_s = repeats * (step.generated_tokens * token_s + prompt_s)
    if isinstance(step, SoakStep) and step.duration_s is not None:
        requests_s = min(step.duration_s, requests_s) if step.requests else step.duration_s
    return requests_s + min(step.prompt_tokens, 64) * token_s


def earlier_durations(reports: Path, inventory: Path) -> dict[str, float]:
    """Median seconds of passed trials, by signature, over the runs on the same inventory."""
    found: dict[str, list[float]] = defaultdict(list)
    for run in sorted(reports.glob("*/run.json")):
        try:
            if read_manifest(run.parent).inventory != shown_path(inventory):
                continue
            for trial in read_trials(run.parent):
                signature = trial.details.get("step")
                if isinstance(signature, str) and trial.outcome is Outcome.PASSED:
                    found[signature].append((trial.ended_ns - trial.started_ns) / 1e9)
        except HarnessError:
            continue  # a damaged earlier run only costs its part of the estimate
    return {signature: median(values) for signature, values in found.items()}
