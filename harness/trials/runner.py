"""A run from the first check to the packed folder: trial after trial, and an end whatever happens."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.cluster.inventory import Inventory, load_inventory
from harness.cluster.node_inspection import UNITS, read_journal
from harness.contracts.run_records import Outcome, RunManifest, Trial
from harness.errors import HarnessError
from harness.router_client.client import RouterClient, router_address
from harness.runs.folder import RunFolder, ensure_writable, read_manifest, read_requests
from harness.runs.lock import inventory_lock
from harness.runs.tables import pack
from harness.trials.context import Context, TrialResult
from harness.trials.faults.leftovers import undo_leftovers
from harness.trials.interrupts import Interrupted, InterruptHandler
from harness.trials.kinds import run_step
from harness.trials.kinds.coordinator_steps import stop
from harness.trials.lab import lab_of, restore_all_memory
from harness.trials.load_generator.samples import NodeClocks, Sampler
from harness.trials.preflight import ClusterSnapshot, cluster_lease, run_preflight
from harness.trials.profile.steps import Step
from harness.trials.progress import RunProgress
from harness.trials.questions import RESTARTS, answer_questions
from harness.trials.resume import may_have_left_a_fault, resume, trial_durations
from harness.trials.run_spec import (
    Estimate,
    Options,
    RunSpec,
    announce,
    estimate,
    open_folder,
    read_run_spec,
    step_signature,
)

PATIENCE_S = 60.0
INTERRUPTED_PATIENCE_S = 5.0
"""How long requests may still take before the coordinator gets its signal: nobody waits for them now."""
NO_ENTRIES = "-- No entries --"
"""What journalctl prints for a unit without entries."""


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
    spec, inventory = read_run_spec(options), load_inventory(options.inventory)
    ensure_writable(options.reports)
    interrupts = InterruptHandler()
    with interrupts.installed(), inventory_lock(options.inventory, spec.name):
        async with (
            RouterClient(router_address(inventory)) as router,
            cluster_lease(router, options.reports / spec.name, lambda text: progress.say(f"warning: {text}")),
        ):
            lab = lab_of(inventory)
            for name in restore_all_memory(lab) if lab else []:
                progress.say(f"{name}: restored the memory limit that an earlier run had lowered")
            if may_have_left_a_fault(spec.earlier):
                await interrupts.run(undo_leftovers(inventory.backends, lab, progress.say))
            cluster = await interrupts.run(
                run_preflight(
                    spec.profile,
                    options.pins,
                    inventory,
                    router,
                    resumed=spec.resumed,
                    force=options.force,
                    say=progress.say,
                )
            )
            expected = estimate(spec.profile, cluster.models, trial_durations(spec.earlier))
            announce(progress.say, spec, expected)
            folder, manifest = open_folder(spec, cluster, expected)
            with contextlib.closing(folder):
                since_ns = manifest.resumed_ns[-1] if manifest.resumed_ns else manifest.started_ns
                ctx = _context(inventory, router, folder, cluster, since_ns, progress)
                return await _Run(ctx, spec, expected, manifest, interrupts, progress).run()


def _context(
    inventory: Inventory,
    router: RouterClient,
    folder: RunFolder,
    cluster: ClusterSnapshot,
    since_ns: int,
    progress: RunProgress,
) -> Context:
    def warn(node: str | None, message: str) -> None:
        progress.say(f"warning: {node}: {message}" if node else f"warning: {message}")
        # What it warns of may be that the disk is full.
        with contextlib.suppress(HarnessError):
            ctx.warn(node, message)

    clocks = NodeClocks(cluster.clock_offset_ns)
    ctx = Context(
        inventory=inventory,
        router=router,
        run=folder,
        sampler=Sampler(inventory.nodes.values(), folder, since_ns, clocks, warn),
        models=cluster.models,
        facts=cluster.facts,
        clocks=clocks,
        lab=lab_of(inventory),
        say=progress.step,
    )
    return ctx


@dataclass(frozen=True)
class _Run:
    """A run with its folder open."""

    ctx: Context
    spec: RunSpec
    expected: Estimate
    manifest: RunManifest
    interrupts: InterruptHandler
    progress: RunProgress

    async def run(self) -> RunResult:
        ctx, spec = self.ctx, self.spec
        steps, trials = spec.profile.trials, list(spec.done)
        outcome = Outcome.INTERRUPTED  # a run that broke off between two trials can be resumed
        if spec.resumed:
            ctx.event(time.time_ns(), "resumed", None, done=len(trials))
        else:
            ctx.event(self.manifest.started_ns, "run_start", None, profile=self.manifest.profile)
        for name, offset_ns in ctx.clocks.ahead_ns.items():
            if offset_ns:
                ctx.warn(name, f"its clock is {offset_ns / 1e9:+.3f} s off ours")
        ctx.sampler.begin()
        try:
            if spec.resumed:
                await self.interrupts.run(resume(ctx, spec.resumed))
            for number, step in list(enumerate(steps, start=1))[len(trials) :]:
                trial_id = f"{number:02d}-{step.title}"
                self.progress.begin(number, len(steps), trial_id, self.expected.seconds[number - 1])
                trials.append(await self._run_trial(trial_id, step))
                self.progress.end(trials[-1])
                if trials[-1].outcome is Outcome.INTERRUPTED:
                    break
            outcomes = {trial.outcome for trial in trials}
            worst = (Outcome.INTERRUPTED, Outcome.FAILED)
            outcome = next((bad for bad in worst if bad in outcomes), Outcome.PASSED)
        finally:
            await self._finish(outcome)
            self._answer_questions(trials)
        return RunResult(ctx.run.path, outcome, trials)

    def _answer_questions(self, trials: list[Trial]) -> None:
        """Put the answers into run.json; where the requests cannot be read, a warning of the run."""
        run = self.ctx.run
        try:
            requests = list(read_requests(run.path))
        except HarnessError as error:
            self.ctx.warn(None, f"questions not answered: {error}")
            return
        questions = answer_questions(self.spec.profile, trials, requests)
        run.write_manifest(read_manifest(run.path).model_copy(update={"questions": questions}))

    async def _run_trial(self, trial_id: str, step: Step) -> Trial:
        ctx, started_ns = self.ctx, time.time_ns()
        ctx.event(started_ns, "trial_start", trial_id)
        try:
            result = await self.interrupts.run(run_step(ctx, trial_id, step))
        except Interrupted:
            result = TrialResult(Outcome.INTERRUPTED, "stopped by the user")
        except HarnessError as error:
            result = TrialResult(Outcome.FAILED, str(error))
        ended_ns = time.time_ns()
        if result.outcome is not Outcome.INTERRUPTED:
            await ctx.sampler.caught_up(ended_ns)
        if restarted := ctx.backend_restarts(started_ns, ended_ns):
            result.details[RESTARTS] = restarted
        result.details["step"] = step_signature(step)
        trial = Trial(
            id=trial_id,
            kind=step.kind,
            model=step.model,
            started_ns=started_ns,
            ended_ns=ended_ns,
            peak=ctx.sampler.series.peaks(started_ns, ended_ns),
            **vars(result),
        )
        ctx.run.append_trial(trial)
        ctx.event(ended_ns, "trial_end", trial_id, outcome=trial.outcome)
        return trial

    async def _finish(self, outcome: Outcome) -> None:
        """Unload, fetch journals, pack. A second signal leaves out what is not done yet."""
        ctx = self.ctx
        try:
            patience_s = INTERRUPTED_PATIENCE_S if outcome is Outcome.INTERRUPTED else PATIENCE_S
            await self.interrupts.run(self._wind_down(patience_s))
        except Interrupted:
            self.progress.say(
                "Stopped again: the coordinator may still be up (harness lab status, or /admin/unload)"
            )
        finally:
            ctx.restore_memory()
            await ctx.sampler.end()
            ended_ns = time.time_ns()
            ctx.event(ended_ns, "run_end", None, outcome=outcome)
            ctx.run.write_manifest(
                self.manifest.model_copy(update={"ended_ns": ended_ns, "outcome": outcome})
            )
            pack_tables(ctx, self.progress.say)

    async def _wind_down(self, patience_s: float) -> None:
        ctx = self.ctx
        ctx.say("unloading")
        try:
            await stop(ctx, None, patience_s)
        except HarnessError as error:
            ctx.warn(ctx.inventory.head.name, str(error))
            self.progress.say(f"warning: {error}")
        ctx.say("fetching journals")
        wanted = [
            (node, unit)
            for node in ctx.inventory.nodes.values()
            for unit in UNITS
            if f"{unit}.service" in ctx.facts[node.name].units
        ]
        started_ns = self.manifest.started_ns
        readings = (read_journal(n, unit, ctx.clocks.to_node(n.name, started_ns)) for n, unit in wanted)
        texts = await asyncio.gather(*readings, return_exceptions=True)
        for (node, unit), text in zip(wanted, texts, strict=True):
            if not isinstance(text, str):
                ctx.warn(node.name, f"no journal of {unit}: {text}")
            elif not text.startswith(NO_ENTRIES):
                ctx.run.write_log(f"{node.name}-{unit}.log", text)


def pack_tables(ctx: Context, say: Callable[[str], None]) -> None:
    """Write the parquet tables; one that cannot be written costs that table and a warning, not the run."""
    try:
        pack(ctx.run.path)
    except HarnessError as error:
        ctx.warn(None, str(error))
        say(f"warning: {error}")
