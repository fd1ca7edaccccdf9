"""The soak trial: the same request for a long time. What drifts, what restarts, what fails?"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count, islice
from statistics import median
from typing import Any

from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.run_records import Outcome, Request
from harness.errors import HarnessError
from harness.runs.metrics import decode_rate, summarise
from harness.runs.statistics import Drift, drift
from harness.trials.context import Context, Finding, judge
from harness.trials.kinds.coordinator_steps import diagnose_requests, keep_log
from harness.trials.kinds.diagnosis_inputs import diagnose_with_nodes
from harness.trials.load_generator.requests import Asker, goodput, in_flight, shortfall
from harness.trials.load_generator.telemetry import Point
from harness.trials.profile.steps import SoakStep, stated

HOUR_S = 3600.0
PAUSE_S = 1.0
"""After a request that failed: one that is refused at once must not be sent a thousand times a second."""


async def run_soak(ctx: Context, trial: str, step: SoakStep) -> Finding:
    """Ask until the time or the count is over; passes when no request failed and nothing restarted."""
    if ctx.loaded is None or ctx.loaded.model != step.model:
        return Finding(Outcome.SKIPPED, f"{step.model} is not loaded", step.expected)
    first = ctx.loaded.start_id
    asker = Asker(ctx, trial, step.model, step.prompt_tokens, step.generated_tokens, step.deadline_s)
    started_ns = time.time_ns()
    begun_s = time.monotonic()

    async def ask(index: int) -> bool:
        ctx.say(f"request {index}")
        if (await asker.exact(index)).error:
            await asyncio.sleep(PAUSE_S)
        return step.duration_s is None or time.monotonic() - begun_s < step.duration_s

    if await asker.warm_up():
        await in_flight(step.concurrency, islice(count(1), step.requests), ask)
    ended_ns = time.time_ns()
    await ctx.sampler.caught_up(ended_ns)
    later, up, gone = await _after(ctx, first)
    grown = ctx.backend_restarts(started_ns, ended_ns)
    restarted = {name: count for name, count in grown.items() if count}
    metrics = summarise(asker.sent, stated(step.limits))
    metrics["restarts"] = float(len(later) + sum(restarted.values()))
    details = _drifts(ctx, asker.sent, started_ns, ended_ns) | {
        "coordinator_starts": [state.start_id for state in later],
        "errors": dict(Counter(request.error for request in asker.sent if request.error)),
    }
    if rate := details["rate_drift"]:
        metrics["rate_drift_percent_per_hour"] = rate["percent_per_hour"]
    if later and later[-1].start_id:
        ctx.loaded = replace(ctx.loaded, start_id=later[-1].start_id)
    wrong = _wrong(step, asker.sent, len(later), restarted, up)
    wrong = f"{wrong}; {gone}" if gone else wrong
    if wrong is None:
        outcome, answer = judge(None, step.expected, _answer(metrics, details, known=bool(grown)))
        return Finding(outcome, answer, step.expected, None, None, metrics, details)
    state = None if gone else await _first_end(ctx, first)
    diagnosis = diagnose_requests(state, asker.sent, wrong)
    outcome, answer = judge(diagnosis, step.expected, wrong)
    return Finding(outcome, answer, step.expected, state, diagnosis, metrics, details)


async def _after(
    ctx: Context, first: str
) -> tuple[list[CoordinatorState], CoordinatorState | None, str | None]:
    """Coordinators that the router started since the one that was loaded, the last of them all as it is now,
    and why the router cannot tell, if it cannot: what was measured until then is not lost."""
    try:
        starts = await ctx.router.starts()
        place = next((number for number, state in enumerate(starts) if state.start_id == first), None)
        later = starts if place is None else starts[place + 1 :]
        return later, await ctx.router.start(later[-1].start_id or first if later else first), None
    except HarnessError as error:
        return [], None, str(error)


async def _first_end(ctx: Context, first: str) -> CoordinatorState | None:
    state = await ctx.router.start(first)
    if state is None or state.exit is None:
        return None
    await keep_log(ctx, state)
    await diagnose_with_nodes(ctx, state)
    return state


def _wrong(
    step: SoakStep,
    sent: Sequence[Request],
    starts: int,
    restarted: dict[str, int],
    up: CoordinatorState | None,
) -> str | None:
    failed = [request for request in sent if request.error]
    said = []
    if failed:
        said.append(f"{len(failed)} of {len(sent)} requests failed, the first with: {failed[0].error}")
    if starts:
        said.append(f"the coordinator was started again {starts} time{'s' * (starts > 1)}")
    if restarted:
        said.append("restarted backends: " + ", ".join(f"{n} {count}x" for n, count in restarted.items()))
    if up is None or up.phase is not CoordinatorPhase.READY:
        said.append("the coordinator is not up any more")
    answered = [request for request in sent if not request.error]
    # As many as were asked for, where nothing but their count ended the soak.
    wanted = 1 if step.requests is None or step.duration_s is not None else step.requests - len(failed)
    short = None
    if answered or not failed:
        short = shortfall(
            answered,
            route="coordinator",
            prompt_tokens=step.prompt_tokens,
            generated_tokens=step.generated_tokens,
            repeats=wanted,
        )
    return "; ".join([*said, *([short] if short else [])]) or None


def _drifts(ctx: Context, sent: Sequence[Request], started_ns: int, ended_ns: int) -> dict[str, Any]:
    good = [(request, rate) for request in sent if not request.warmup and (rate := decode_rate(request))]
    times = [(request.sent_ns - started_ns) / 1e9 for request, _ in good]
    rates = [rate for _, rate in good]
    moved = drift(times, rates)
    nodes = [node.name for node in ctx.inventory.backends]
    windows = ctx.sampler.series.windows(nodes, started_ns, ended_ns)
    memory = {node: _memory_drift(points) for node, points in windows.items()}
    middle = median(rates) if rates else 0.0
    return {
        "rate_drift": _per_hour("percent_per_hour", moved, 100 / middle) if moved and middle else None,
        "memory_drift": {node: found for node, found in memory.items() if found},
    }


def _memory_drift(points: Iterable[Point]) -> dict[str, Any] | None:
    held = list(points)
    moved = drift([one.time_ns / 1e9 for one in held], [float(one.used_bytes) for one in held])
    return _per_hour("bytes_per_hour", moved, 1.0) if moved else None


def _per_hour(name: str, moved: Drift, scale: float) -> dict[str, Any]:
    return {
        name: moved.per_s * HOUR_S * scale,
        "low": moved.low * HOUR_S * scale,
        "high": moved.high * HOUR_S * scale,
        "beyond_noise": moved.beyond_noise,
    }


def _answer(metrics: dict[str, float], details: dict[str, Any], *, known: bool) -> str:
    """What was seen.

    Args:
        known: whether any monitor told of the backends' restarts.
    """
    restarts = "no restart" if known else "no restart of the coordinator (no monitor told of the backends)"
    said = [f"{metrics['requests']:.0f} requests, no error, {restarts}"]
    if (rate := details["rate_drift"]) and rate["beyond_noise"]:
        said.append(f"tokens/s drift {rate['percent_per_hour']:+.1f} % an hour")
    for node, moved in details["memory_drift"].items():
        if moved["beyond_noise"]:
            said.append(f"{node}'s memory {moved['bytes_per_hour'] / 2**20:+,.0f} MiB an hour")
    if details["rate_drift"] is None:
        said.append("too few answers to tell whether the rate drifts")
    if not details["memory_drift"]:
        said.append("no samples to tell whether memory drifts")
    if len(said) == 1:
        said.append("neither rate nor memory drifts beyond the noise")
    return "; ".join(said) + goodput(metrics)
