"""Taking up a run that was cut short: what had ended is kept, the trial that had not runs again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from harness.contracts.coordinator_state import CoordinatorPhase
from harness.contracts.run_records import NodeFacts, Outcome, RunManifest, Trial
from harness.errors import HarnessError
from harness.runs.read import first_fault, read_events, read_lines, read_manifest, read_trials
from harness.runs.store import write_whole
from harness.settings import shown_path
from harness.trials.context import Context, Loaded
from harness.trials.kinds.load import load_key, load_request, starve
from harness.trials.profile.profile import Profile
from harness.trials.profile.steps import FaultStep, LoadStep, ParityStep, PinStep, Step, UnloadStep

LAST = "last"
"""In place of a run's name: the newest on the inventory, if it did not end."""
_CUT = (None, Outcome.INTERRUPTED)


@dataclass(frozen=True)
class Unfinished:
    """A run that was cut short."""

    folder: Path
    manifest: RunManifest
    profile: Profile
    """As it ran, trials in their order."""
    done: list[Trial]
    """Of the first trials; the next one is to run."""


def unfinished_run(reports: Path, inventory: Path) -> str | None:
    """Name of the newest run on this inventory that a kill cut short; None where there is none."""
    newest = _newest(reports, inventory)
    return newest.run if newest and newest.outcome in _CUT and newest.steps else None


def may_have_left_a_fault(reports: Path, inventory: Path) -> bool:
    """Whether the newest run on this inventory causes faults and was cut short, or did not undo its last."""
    newest = _newest(reports, inventory)
    if newest is None or not any(step["kind"] == "fault" for step in newest.steps.get("trials", [])):
        return False
    try:
        kinds = [event.kind for event in read_events(reports / newest.run)]
    except HarnessError:
        return True
    last = next((kind for kind in reversed(kinds) if kind in ("fault", "fault_undone")), None)
    return newest.outcome in _CUT or last == "fault"


def _newest(reports: Path, inventory: Path) -> RunManifest | None:
    for path in sorted(reports.glob("*/run.json"), reverse=True):
        try:
            manifest = read_manifest(path.parent)
        except HarnessError:
            continue
        if manifest.inventory == shown_path(inventory):
            return manifest
    return None


def read_unfinished(name: str, reports: Path, inventory: Path) -> Unfinished:
    """The run to go on with.

    Args:
        name: of its folder in ``reports``, or ``last``.

    Raises:
        HarnessError: there is none, it has ended, it was of another inventory, or it cannot be read.
    """
    if name == LAST and (found := unfinished_run(reports, inventory)) is None:
        raise HarnessError(f"no run on {inventory} in {reports} was cut short: there is nothing to resume")
    folder = reports / (found or "" if name == LAST else name)
    manifest = read_manifest(folder)
    if manifest.inventory != shown_path(inventory):
        raise HarnessError(
            f"run {manifest.run} was on {manifest.inventory}, not on {shown_path(inventory)}; "
            f"resume it with --inventory {manifest.inventory}"
        )
    if manifest.outcome not in _CUT or not manifest.steps:
        raise HarnessError(f"run {manifest.run} has ended ({manifest.outcome}): there is nothing to resume")
    try:
        profile = Profile.model_validate(manifest.steps)
    except ValidationError as error:
        raise HarnessError(
            f"run {manifest.run} was made by another version of harness ({first_fault(error)})"
        ) from None
    done = [trial for trial in read_trials(folder) if trial.outcome is not Outcome.INTERRUPTED]
    return Unfinished(folder, manifest, profile, done)


def drop_unfinished(run: Unfinished) -> None:
    """Take what belongs to no finished trial out of the run: the trial that was cut short begins anew."""
    for packed in run.folder.glob("*.parquet"):
        packed.unlink()  # of an earlier end; made again at the next one
    kept = {trial.id for trial in run.done}
    _keep(run.folder / "trials.jsonl", "id", kept)
    _keep(run.folder / "requests.jsonl", "trial", kept)


def _keep(path: Path, key: str, wanted: set[str]) -> None:
    if path.exists():
        lines = [line for line in read_lines(path) if line[key] in wanted]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def check_same_cluster(run: Unfinished, facts: Mapping[str, NodeFacts]) -> None:
    """The nodes are those of the run, with the binaries that its next trial needs.

    A run that changes pins needs the one of its last finished change; none, where the next trial is a change.

    Raises:
        HarnessError: one is not: its figures could not stand beside the earlier ones.
    """
    manifest, steps = run.manifest, run.profile.trials
    changes = [step.build for step in steps[: len(run.done)] if isinstance(step, PinStep)]
    if steps[len(run.done) :] and isinstance(steps[len(run.done)], PinStep):
        return
    were = {node.name: node for node in manifest.nodes}
    if were.keys() != facts.keys():
        gone = ", ".join(sorted(were.keys() ^ facts.keys()))
        raise HarnessError(f"run {manifest.run} had other nodes ({gone}): begin a new run")
    for name, now in facts.items():
        before = were[name]
        wanted = changes[-1] if changes else before.build
        if now.build != wanted or (wanted == before.build and before.binaries != now.binaries):
            raise HarnessError(
                f"run {manifest.run}: {name} has another llama.cpp ({now.build}, was {wanted}); "
                "deploy that one again, or begin a new run"
            )


async def take_up(ctx: Context, run: Unfinished) -> None:
    """Know again what the finished trials taught, and load what the next one needs.

    Raises:
        HarnessError: it cannot be loaded any more.
    """
    steps = run.profile.trials
    up: tuple[LoadStep, Trial] | None = None
    for step, trial in zip(steps, run.done, strict=False):
        if isinstance(step, LoadStep):
            _learn(ctx, step, trial)
            state = trial.coordinator
            up = (step, trial) if state and state.plan and state.phase is CoordinatorPhase.READY else None
        elif isinstance(step, UnloadStep | ParityStep | FaultStep | PinStep):
            up = None
    if up and _needs_a_load(steps[len(run.done) :]):
        await _load_again(ctx, *up)


def _needs_a_load(left: Sequence[Step]) -> bool:
    return bool(left) and not isinstance(left[0], LoadStep | ParityStep | FaultStep | PinStep)


def _learn(ctx: Context, step: LoadStep, trial: Trial) -> None:
    nodes = ctx.backends(step.nodes) or []
    key, state = load_key(step, nodes), trial.coordinator
    if state and state.plan and state.distributed:
        ctx.plans[key] = state.plan
    if step.cache == "cold" and "wire_bytes" in trial.metrics:
        ctx.cold_wire_bytes[key] = trial.metrics["wire_bytes"]


async def _load_again(ctx: Context, step: LoadStep, trial: Trial) -> None:
    plan = trial.coordinator.plan if trial.coordinator else None
    request = load_request(step, ctx.backends(step.nodes) or [], plan)
    if step.starve:
        starve(ctx, step.starve)
    ctx.say(f"loading {step.model} again")
    state = await ctx.router.load(request)
    if state.start_id:
        ctx.loaded = Loaded(state.start_id, step.model, request)
