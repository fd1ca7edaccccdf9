"""The inference trial: requests of one prompt length to the model that is loaded."""

import time

from harness.contracts.coordinator_state import CoordinatorPhase
from harness.contracts.diagnosis import FailureClass
from harness.contracts.run_records import Outcome
from harness.diagnosis.thrash import find_thrash
from harness.runs.metrics import summarise
from harness.trials.context import Context, Finding, judge
from harness.trials.kinds.coordinator_steps import any_late, diagnose_requests, ended_state
from harness.trials.load_generator.requests import goodput, measure, shortfall
from harness.trials.profile.steps import InferenceStep, stated


async def run_inference(ctx: Context, trial: str, step: InferenceStep) -> Finding:
    """Send the requests; passes when each has the asked lengths and the coordinator is still the same."""
    if ctx.loaded is None or ctx.loaded.model != step.model:
        return Finding(Outcome.SKIPPED, f"{step.model} is not loaded", step.expected)
    started_ns = time.time_ns()
    sent, hopeless = await measure(
        ctx,
        trial,
        step.model,
        prompt_tokens=step.prompt_tokens,
        generated_tokens=step.generated_tokens,
        repeats=step.repeats,
        deadline_s=step.deadline_s,
        concurrency=step.concurrency,
    )
    metrics = summarise(sent, stated(step.limits)) | {
        "prompt_tokens": float(step.prompt_tokens),
        "generated_tokens": float(step.generated_tokens),
        "concurrency": float(step.concurrency),
    }
    wrong = shortfall(
        sent,
        route="coordinator",
        prompt_tokens=step.prompt_tokens,
        generated_tokens=step.generated_tokens,
        repeats=step.repeats,
    )
    state = None
    if wrong is None:
        state = await ctx.router.start(ctx.loaded.start_id)
        if state is None or state.phase is not CoordinatorPhase.READY:
            wrong = "the coordinator that was loaded has ended: another one answered"
    if wrong:
        # An error may be the coordinator's end: the router then knows of it within seconds.
        state = await ended_state(ctx, late=any_late(sent))
    ended_ns = time.time_ns()
    await ctx.sampler.caught_up(ended_ns)
    names = [node.name for node in ctx.inventory.backends]
    thrash = find_thrash(ctx.sampler.series.windows(names, started_ns, ended_ns))
    answer = wrong or _figures(metrics) + _waiting(ctx.loaded.request.parallel, step.concurrency)
    diagnosis = hopeless or (diagnose_requests(state, sent, wrong) if wrong else None)
    if hopeless:
        answer = "; ".join(f"{one.source}: {one.line}" for one in hopeless.evidence)
    if diagnosis is None and thrash is not None:
        answer += f"; thrashed: {thrash.evidence[0].source}: {thrash.evidence[0].line}"
        diagnosis = thrash if step.expected is FailureClass.SWAP_THRASH else None
    outcome, text = judge(diagnosis, step.expected, answer)
    return Finding(outcome, text, step.expected, state, diagnosis, metrics)


def _waiting(slots: int, streams: int) -> str:
    return (
        "" if streams <= slots else f"; {streams} at once on {slots} slot{'s' * (slots > 1)}: the rest waited"
    )


def _figures(metrics: dict[str, float]) -> str:
    def figure(name: str) -> str:
        return f"{metrics[name]:.2f}" if name in metrics else "?"

    return (
        f"first token after {figure('ttft_s_median')} s, {figure('decode_tokens_per_s_median')} tokens/s "
        f"(server: {figure('server_decode_tokens_per_s_median')})" + goodput(metrics)
    )
