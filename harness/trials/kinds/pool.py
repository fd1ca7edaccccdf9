"""The pool trial: a small model answers through the router."""

from harness.contracts.run_records import Outcome
from harness.runs.metrics import summarise
from harness.trials.context import Context, Finding
from harness.trials.load_generator.requests import measure, shortfall
from harness.trials.profile.steps import PoolStep


async def run_pool(ctx: Context, trial: str, step: PoolStep) -> Finding:
    """Send the requests; passes when each came back whole, from the pool."""
    sent, _ = await measure(
        ctx,
        trial,
        step.model,
        prompt_tokens=step.prompt_tokens,
        generated_tokens=step.generated_tokens,
        repeats=step.requests,
        deadline_s=step.deadline_s,
    )
    metrics = summarise(sent)
    wrong = shortfall(
        sent,
        route="pool",
        prompt_tokens=step.prompt_tokens,
        generated_tokens=step.generated_tokens,
        repeats=step.requests,
    )
    if wrong:
        return Finding(Outcome.FAILED, wrong, metrics=metrics)
    answer = (
        f"{step.requests} answers from the pool, first token after {metrics['ttft_s_median'] * 1e3:.0f} ms, "
        f"{metrics.get('decode_tokens_per_s_median', 0):.1f} tokens/s"
    )
    return Finding(Outcome.PASSED, answer, metrics=metrics)
