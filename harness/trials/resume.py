"""Earlier runs on an inventory, and resuming one: ended trials are kept, the interrupted one runs again."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pydantic import ValidationError

from harness.common.files import write_atomic
from harness.common.text import first_error
from harness.contracts.coordinator_state import CoordinatorPhase
from harness.contracts.plan import Plan
from harness.contracts.run_records import NodeFacts, Outcome, RunManifest, Trial
from harness.errors import HarnessError
from harness.runs.folder import read_events, read_lines, read_manifest, read_trials
from harness.settings import shown_path
from harness.trials.context import Context, Loaded, load_key
from harness.trials.kinds.load import load_request
from harness.trials.profile.profile import Profile
from harness.trials.profile.steps import LoadStep, PinStep

UNFINISHED_OUTCOMES = (None, Outcome.INTERRUPTED)
"""Outcomes of a run that ``--resume`` can continue."""


@dataclass(frozen=True)
class EarlierRun:
    """A run of the reports folder."""

    folder: Path
    manifest: RunManifest

    @property
    def interrupted(self) -> bool:
        """Whether it was killed or interrupted, and can be resumed."""
        return self.manifest.outcome in UNFINISHED_OUTCOMES and bool(self.manifest.steps)


def earlier_runs(reports: Path, inventory: Path) -> list[EarlierRun]:
    """The runs on an inventory, newest first; a damaged one is left out."""
    runs = []
    for path in sorted(reports.glob("*/run.json"), reverse=True):
        try:
            manifest = read_manifest(path.parent)
        except HarnessError:
            continue
        if manifest.inventory == shown_path(inventory):
            runs.append(EarlierRun(path.parent, manifest))
    return runs


def may_have_left_a_fault(runs: Sequence[EarlierRun]) -> bool:
    """Whether the newest of these runs causes faults and was interrupted, or did not undo its last one."""
    if not runs or not any(step["kind"] == "fault" for step in runs[0].manifest.steps.get("trials", [])):
        return False
    try:
        kinds = [event.kind for event in read_events(runs[0].folder)]
    except HarnessError:
        return True
    last = next((kind for kind in reversed(kinds) if kind in ("fault", "fault_undone")), None)
    return runs[0].manifest.outcome in UNFINISHED_OUTCOMES or last == "fault"


def trial_durations(runs: Sequence[EarlierRun]) -> dict[str, float]:
    """Median seconds of the trials that passed, by the signature of their step."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        try:
            for trial in read_trials(run.folder):
                signature = trial.details.get("step")
                if isinstance(signature, str) and trial.outcome is Outcome.PASSED:
                    seconds[signature].append((trial.ended_ns - trial.started_ns) / 1e9)
        except HarnessError:
            continue  # a damaged run only costs its part of the estimate
    return {signature: median(values) for signature, values in seconds.items()}


LAST = "last"
"""In place of a run's name: the newest on the inventory, if it did not end."""
RETIRED_KEYS = ("node_sets", "seed", "deadline_s", "stop_when")
"""Keys of a profile that earlier versions recorded with each run; a resumed run continues without them."""


@dataclass(frozen=True)
class Unfinished:
    """A run that was interrupted."""

    folder: Path
    manifest: RunManifest
    profile: Profile
    """As it ran, trials in their order."""
    done: list[Trial]
    """Of the first trials; the next one is to run."""


def read_unfinished(name: str, reports: Path, inventory: Path, earlier: Sequence[EarlierRun]) -> Unfinished:
    """The run to go on with.

    Args:
        name: of its folder in ``reports``, or ``last``.
        earlier: the runs on the inventory, newest first.

    Raises:
        HarnessError: there is none, it has ended, it was of another inventory, or it cannot be read.
    """
    folder = reports / name
    if name == LAST:
        if not earlier or not earlier[0].interrupted:
            raise HarnessError(
                f"no run on {inventory} in {reports} was interrupted: there is nothing to resume"
            )
        folder = earlier[0].folder
    manifest = read_manifest(folder)
    if manifest.inventory != shown_path(inventory):
        raise HarnessError(
            f"run {manifest.run} was on {manifest.inventory}, not on {shown_path(inventory)}; "
            f"resume it with --inventory {manifest.inventory}"
        )
    if manifest.outcome not in UNFINISHED_OUTCOMES or not manifest.steps:
        raise HarnessError(f"run {manifest.run} has ended ({manifest.outcome}): there is nothing to resume")
    steps = {key: value for key, value in manifest.steps.items() if key not in RETIRED_KEYS}
    try:
        profile = Profile.model_validate(steps)
    except ValidationError as error:
        raise HarnessError(
            f"run {manifest.run} was made by another version of harness ({first_error(error)})"
        ) from None
    done = [trial for trial in read_trials(folder) if trial.outcome is not Outcome.INTERRUPTED]
    return Unfinished(folder, manifest, profile, done)


def drop_unfinished(run: Unfinished) -> None:
    """Remove the records of unfinished trials from the run: the interrupted trial begins again."""
    for packed in run.folder.glob("*.parquet"):
        packed.unlink()  # of an earlier end; made again at the next one
    finished = {trial.id for trial in run.done}
    for path, key in ((run.folder / "trials.jsonl", "id"), (run.folder / "requests.jsonl", "trial")):
        if path.exists():
            lines = [line for line in read_lines(path) if line[key] in finished]
            write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))


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
    nodes = {node.name: node for node in manifest.nodes}
    if nodes.keys() != facts.keys():
        differing = ", ".join(sorted(nodes.keys() ^ facts.keys()))
        raise HarnessError(f"run {manifest.run} had other nodes ({differing}): begin a new run")
    for name, now in facts.items():
        before = nodes[name]
        wanted = changes[-1] if changes else before.build
        if now.build != wanted or (wanted == before.build and before.binaries != now.binaries):
            raise HarnessError(
                f"run {manifest.run}: {name} has another llama.cpp ({now.build}, was {wanted}); "
                "deploy that one again, or begin a new run"
            )


async def resume(ctx: Context, run: Unfinished) -> None:
    """Restore what the finished trials taught the context, and load what the next one needs.

    Raises:
        HarnessError: it cannot be loaded any more.
    """
    steps = run.profile.trials
    up: tuple[LoadStep, Plan] | None = None
    for step, trial in zip(steps, run.done, strict=False):
        if isinstance(step, LoadStep):
            _learn(ctx, step, trial)
            state = trial.coordinator
            ready = state is not None and state.phase is CoordinatorPhase.READY
            up = (step, state.plan) if state and ready and state.plan else None
        elif step.ends_unloaded:
            up = None
    left = steps[len(run.done) :]
    if up and left and not left[0].loads_itself:
        await _load_again(ctx, *up)


def _learn(ctx: Context, step: LoadStep, trial: Trial) -> None:
    nodes, state = ctx.backends(step.nodes), trial.coordinator
    if not nodes:
        return
    key = load_key(load_request(step, nodes))
    if state and state.plan and state.distributed:
        ctx.plans[key] = state.plan
    if step.cache == "cold" and "wire_bytes" in trial.metrics:
        ctx.cold_wire_bytes[key] = trial.metrics["wire_bytes"]


async def _load_again(ctx: Context, step: LoadStep, plan: Plan) -> None:
    request = load_request(step, ctx.backends(step.nodes) or []).model_copy(update={"plan": plan})
    if step.starve:
        ctx.limit_memory(step.starve.node, step.starve.memory)
    ctx.say(f"loading {step.model} again")
    state = await ctx.router.load(request)
    if state.start_id:
        ctx.loaded = Loaded(state.start_id, request)
