"""The pool and the inference trial: requests of one prompt length, to the pool or to the loaded model."""

import time

from harness.contracts.coordinator_state import CoordinatorPhase
from harness.contracts.diagnosis import FailureClass
from harness.contracts.run_records import Outcome
from harness.diagnosis.node_conditions import find_thrash
from harness.runs.metrics import summarise
from harness.trials.context import Context, TrialResult, grade
from harness.trials.kinds.coordinator_steps import any_timed_out, diagnose_requests, ended_state
from harness.trials.load_generator.requests import goodput, measure, shortfall
from harness.trials.profile.base_step import stated
from harness.trials.profile.steps import COUNTS, InferenceStep, PoolStep


async def run_pool(ctx: Context, trial: str, step: PoolStep) -> TrialResult:
    """Send the requests; passes when each came back whole, from the pool."""
    sent, _ = await measure(ctx, trial, step, step.requests)
    metrics = summarise(sent)
    if wrong := shortfall(step, sent, route="pool", repeats=step.requests):
        return TrialResult(Outcome.FAILED, wrong, metrics=metrics)
    answer = (
        f"{step.requests} answers from the pool, first token after {metrics['ttft_s_median'] * 1e3:.0f} ms, "
        f"{metrics.get('decode_tokens_per_s_median', 0):.1f} tokens/s"
    )
    return TrialResult(Outcome.PASSED, answer, metrics=metrics)


async def run_inference(ctx: Context, trial: str, step: InferenceStep) -> TrialResult:
    """Send the requests; passes when each has the asked lengths and the coordinator is still the same."""
    if ctx.loaded is None or ctx.loaded.request.model != step.model:
        return TrialResult(Outcome.SKIPPED, f"{step.model} is not loaded", step.expected)
    started_ns = time.time_ns()
    sent, thrash = await measure(ctx, trial, step, step.repeats, step.concurrency)
    metrics = summarise(sent, stated(step.limits))
    metrics |= {name: float(getattr(step, name)) for name in COUNTS}
    wrong = shortfall(step, sent, route="coordinator", repeats=step.repeats)
    state = None
    if wrong is None:
        state = await ctx.router.start(ctx.loaded.start_id)
        if state is None or state.phase is not CoordinatorPhase.READY:
            wrong = "the coordinator that was loaded has ended: another one answered"
    if wrong:
        # An error may be the coordinator's end: the router then knows of it within seconds.
        state = await ended_state(ctx, late=any_timed_out(sent))
    ended_ns = time.time_ns()
    await ctx.sampler.caught_up(ended_ns)
    names = [node.name for node in ctx.inventory.backends]
    thrash = find_thrash(ctx.sampler.series.windows(names, started_ns, ended_ns))
    answer = wrong or _figures(metrics) + _waiting(ctx.loaded.request.parallel, step.concurrency)
    diagnosis = thrash or (diagnose_requests(state, sent, wrong) if wrong else None)
    if thrash:
        answer = "; ".join(f"{evidence.source}: {evidence.line}" for evidence in thrash.evidence)
    if diagnosis is None and thrash is not None:
        answer += f"; thrashed: {thrash.evidence[0].source}: {thrash.evidence[0].line}"
        diagnosis = thrash if step.expected is FailureClass.SWAP_THRASH else None
    return grade(answer, step.expected, diagnosis, state, metrics)


def _waiting(slots: int, streams: int) -> str:
    if streams <= slots:
        return ""
    return f"; {streams} at once on {slots} slot{'s' * (slots > 1)}: the rest waited"


def _figures(metrics: dict[str, float]) -> str:
    first_s, rate, server_rate = (
        f"{metrics[name]:.2f}" if name in metrics else "?"
        for name in ("ttft_s_median", "decode_tokens_per_s_median", "server_decode_tokens_per_s_median")
    )
    return f"first token after {first_s} s, {rate} tokens/s (server: {server_rate}){goodput(metrics)}"
