"""A run from the first check to the packed folder: trial after trial, and an end whatever happens."""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

from harness.cluster.inventory import Inventory, load_inventory
from harness.cluster.ssh import UNITS, read_journal
from harness.contracts.run_records import Outcome, RunManifest, Trial
from harness.errors import HarnessError
from harness.router_client.client import RouterClient, router_address
from harness.runs.lock import inventory_lock
from harness.runs.pack import pack
from harness.runs.read import read_manifest, read_requests
from harness.runs.store import RunFolder
from harness.trials.cluster_lease import cluster_lease
from harness.trials.context import Context, Finding
from harness.trials.estimate import step_signature
from harness.trials.faults.leftovers import undo_leftovers
from harness.trials.interrupts import Interrupted, Stopper
from harness.trials.kinds.coordinator_steps import feed_again, stop
from harness.trials.kinds.fault import run_fault
from harness.trials.kinds.inference import run_inference
from harness.trials.kinds.load import run_load
from harness.trials.kinds.parity import run_parity
from harness.trials.kinds.pool import run_pool
from harness.trials.kinds.release_switch import run_pin
from harness.trials.kinds.soak import run_soak
from harness.trials.kinds.unload import run_unload
from harness.trials.lab import lab_of, restore_memory
from harness.trials.load_generator.telemetry import Sampler
from harness.trials.preflight import Options, Setting, settle
from harness.trials.profile.profile import Profile
from harness.trials.profile.steps import (
    FaultStep,
    InferenceStep,
    LoadStep,
    ParityStep,
    PinStep,
    PoolStep,
    SoakStep,
    Step,
    UnloadStep,
    step_title,
)
from harness.trials.progress import RunProgress
from harness.trials.questions import RESTARTS, answered
from harness.trials.resume import may_have_left_a_fault, take_up
from harness.trials.run_spec import Begun, announce, begin, open_folder, outcome_of
from harness.trials.stop_conditions import RunDeadline, why_stop

PATIENCE_S = 60.0
INTERRUPTED_PATIENCE_S = 5.0
"""How long requests may still take before the coordinator is told to stop: nobody waits for them now."""
NO_ENTRIES = "-- No entries --"
"""What journalctl prints for a unit that said nothing."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    folder: Path
    outcome: Outcome
    trials: list[Trial]


async def run_benchmark(options: Options, progress: RunProgress) -> RunResult:
    """Run a profile on an inventory.

    Raises:
        HarnessError: it cannot start; nothing was written then.
        Interrupted: a signal came before the first trial.
    """
    begun, inventory = begin(options), load_inventory(options.inventory)
    stopper = Stopper()
    with stopper.installed(), inventory_lock(options.inventory, begun.run):
        async with (
            RouterClient(router_address(inventory)) as router,
            cluster_lease(router, options.reports / begun.run, lambda text: progress.say(f"warning: {text}")),
        ):
            lab = lab_of(inventory)
            for name in restore_memory(lab) if lab else []:
                progress.say(f"{name}: gave it back the memory that an earlier run had left it without")
            if may_have_left_a_fault(options.reports, options.inventory):
                await stopper.run(undo_leftovers(inventory.backends, lab, progress.say))
            setting = await stopper.run(settle(options, begun.profile, inventory, router))
            announce(progress.say, options, begun, setting)
            folder, manifest = open_folder(begun, options, setting)
            with contextlib.closing(folder):
                since_ns = manifest.resumed_ns[-1] if manifest.resumed_ns else manifest.started_ns
                ctx = _context(inventory, router, folder, setting, since_ns, progress)
                return await _run_all(ctx, begun, setting, manifest, stopper, progress)


def _context(
    inventory: Inventory,
    router: RouterClient,
    folder: RunFolder,
    setting: Setting,
    started_ns: int,
    progress: RunProgress,
) -> Context:
    def warn(node: str, message: str) -> None:
        ctx.event(time.time_ns(), "warning", None, node, message=message)
        progress.say(f"warning: {node}: {message}")

    sampler = Sampler(inventory.nodes.values(), folder, started_ns, warn)
    ctx = Context(
        inventory=inventory,
        router=router,
        run=folder,
        sampler=sampler,
        models=setting.models,
        facts=setting.facts,
        clock_offset_ns=setting.clock_offset_ns,
        lab=lab_of(inventory),
        say=progress.step,
    )
    return ctx


async def _run_all(
    ctx: Context,
    begun: Begun,
    setting: Setting,
    manifest: RunManifest,
    stopper: Stopper,
    progress: RunProgress,
) -> RunResult:
    profile, trials = begun.profile, list(begun.done)
    stopped: str | None = None
    ended = False
    if begun.earlier:
        ctx.event(time.time_ns(), "resumed", None, done=len(trials))
    else:
        ctx.event(manifest.started_ns, "run_start", None, profile=manifest.profile)
    for name, offset in setting.clock_offset_ns.items():
        if offset:
            ctx.event(
                time.time_ns(), "warning", None, name, message=f"its clock is {offset / 1e9:+.3f} s off ours"
            )
    ctx.sampler.begin()
    deadline = RunDeadline(profile.deadline_s, sum(t.ended_ns - t.started_ns for t in trials) / 1e9)
    try:
        if begun.earlier:
            await stopper.run(take_up(ctx, begun.earlier))
        for number, step in list(enumerate(profile.trials, start=1))[len(trials) :]:
            trial_id = f"{number:02d}-{step_title(step)}"
            progress.begin(number, len(profile.trials), trial_id, setting.estimates_s[number - 1])
            trial = await _run_trial(ctx, trial_id, step, stopper, deadline)
            trials.append(trial)
            progress.end(trial)
            if trial.outcome is Outcome.INTERRUPTED:
                break
            left = len(profile.trials) - number
            why = str(deadline) if deadline.over else why_stop(profile.stop_when, trials)
            if left and why:
                stopped = f"{left} trial{'s' * (left > 1)} left out: {why}"
                ctx.event(time.time_ns(), "stopped", None, reason=stopped)
                progress.say(f"Stopped: {stopped}")
                break
        ended = True
    finally:
        manifest = manifest.model_copy(update={"stopped": stopped})
        # What broke off between two trials can go on.
        outcome = outcome_of(trials, len(profile.trials)) if ended else Outcome.INTERRUPTED
        await _finish(ctx, manifest, outcome, stopper, progress)
        _answer_questions(ctx, profile, trials)
    return RunResult(ctx.run.path, outcome, trials)


def _answer_questions(ctx: Context, profile: Profile, trials: list[Trial]) -> None:
    """Put the answers into run.json; a damaged line of requests costs them, and not the run."""
    try:
        requests = list(read_requests(ctx.run.path))
    except HarnessError as error:
        ctx.event(time.time_ns(), "warning", None, None, message=f"questions not answered: {error}")
        return
    found = answered(profile, trials, requests)
    ctx.run.write_manifest(read_manifest(ctx.run.path).model_copy(update={"questions": found}))


async def _run_trial(
    ctx: Context, trial_id: str, step: Step, stopper: Stopper, deadline: RunDeadline
) -> Trial:
    started_ns = time.time_ns()
    ctx.event(started_ns, "trial_start", trial_id)
    try:
        finding = await stopper.run(deadline.hold(_act(ctx, trial_id, step)))
    except Interrupted:
        finding = Finding(Outcome.INTERRUPTED, "stopped by the user")
    except HarnessError as error:
        finding = Finding(Outcome.FAILED, str(error))
    ended_ns = time.time_ns()
    if finding.outcome is not Outcome.INTERRUPTED:
        await ctx.sampler.caught_up(ended_ns)
    if restarted := ctx.backend_restarts(started_ns, ended_ns):
        finding.details[RESTARTS] = restarted
    trial = Trial(
        id=trial_id,
        kind=step.kind,
        model=step.model,
        started_ns=started_ns,
        ended_ns=ended_ns,
        outcome=finding.outcome,
        answer=finding.answer,
        expected=finding.expected,
        coordinator=finding.coordinator,
        diagnosis=finding.diagnosis,
        metrics=finding.metrics,
        peak=ctx.sampler.series.peaks(started_ns, ended_ns),
        details={**finding.details, "step": step_signature(step)},
    )
    ctx.run.append_trial(trial)
    ctx.event(ended_ns, "trial_end", trial_id, outcome=trial.outcome)
    return trial


async def _act(ctx: Context, trial_id: str, step: Step) -> Finding:
    match step:
        case PoolStep():
            return await run_pool(ctx, trial_id, step)
        case LoadStep():
            return await run_load(ctx, trial_id, step)
        case InferenceStep():
            return await run_inference(ctx, trial_id, step)
        case SoakStep():
            return await run_soak(ctx, trial_id, step)
        case ParityStep():
            return await run_parity(ctx, trial_id, step)
        case FaultStep():
            return await run_fault(ctx, trial_id, step)
        case PinStep():
            return await run_pin(ctx, trial_id, step)
        case UnloadStep():
            return await run_unload(ctx, trial_id, step)


async def _finish(
    ctx: Context, manifest: RunManifest, outcome: Outcome, stopper: Stopper, progress: RunProgress
) -> None:
    """Unload, fetch journals, pack. A second signal leaves out what is not done yet."""
    try:
        patience_s = INTERRUPTED_PATIENCE_S if outcome is Outcome.INTERRUPTED else PATIENCE_S
        await stopper.run(_wind_down(ctx, manifest, progress, patience_s))
    except Interrupted:
        progress.say("Stopped again: the coordinator may still be up (harness lab status, or /admin/unload)")
    finally:
        feed_again(ctx)
        await ctx.sampler.end()
        ended_ns = time.time_ns()
        ctx.event(ended_ns, "run_end", None, outcome=outcome)
        ctx.run.write_manifest(manifest.model_copy(update={"ended_ns": ended_ns, "outcome": outcome}))
        pack(ctx.run.path)


async def _wind_down(ctx: Context, manifest: RunManifest, progress: RunProgress, patience_s: float) -> None:
    progress.step("unloading")
    try:
        await stop(ctx, None, patience_s)
    except HarnessError as error:
        ctx.event(time.time_ns(), "warning", None, ctx.inventory.head.name, message=str(error))
        progress.say(f"warning: {error}")
    progress.step("fetching journals")
    wanted = [
        (node, unit)
        for node in ctx.inventory.nodes.values()
        for unit in UNITS
        if f"{unit}.service" in ctx.facts[node.name].units
    ]
    texts = await asyncio.gather(
        *(read_journal(node, unit, manifest.started_ns) for node, unit in wanted), return_exceptions=True
    )
    for (node, unit), text in zip(wanted, texts, strict=True):
        if isinstance(text, str):
            if not text.startswith(NO_ENTRIES):
                ctx.run.write_log(f"{node.name}-{unit}.log", text)
        else:
            ctx.event(time.time_ns(), "warning", None, node.name, message=f"no journal of {unit}: {text}")
