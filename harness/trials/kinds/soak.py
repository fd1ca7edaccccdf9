"""The soak trial: the same request for a long time. What drifts, what restarts, what fails?"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import count, islice
from statistics import median
from typing import Any

from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.run_records import Outcome, Request
from harness.errors import HarnessError
from harness.runs.metrics import decode_rate, summarise
from harness.runs.statistics import Drift, drift
from harness.trials.context import Context, TrialResult, grade
from harness.trials.kinds.coordinator_steps import diagnose_requests, keep_log
from harness.trials.kinds.diagnosis_inputs import diagnose_with_nodes
from harness.trials.load_generator.requests import RequestRunner, goodput, in_flight, shortfall
from harness.trials.profile.base_step import stated
from harness.trials.profile.steps import SoakStep

HOUR_S = 3600.0
PAUSE_S = 1.0
"""After a request that failed: one that is refused at once must not be sent a thousand times a second."""


async def run_soak(ctx: Context, trial: str, step: SoakStep) -> TrialResult:
    """Send requests until the time or the count is over; passes when none failed and nothing restarted."""
    if ctx.loaded is None or ctx.loaded.request.model != step.model:
        return TrialResult(Outcome.SKIPPED, f"{step.model} is not loaded", step.expected)
    first = ctx.loaded.start_id
    requests = RequestRunner(ctx, trial, step)
    started_ns = time.time_ns()
    begun_s = time.monotonic()

    async def ask(index: int) -> bool:
        ctx.say(f"request {index}")
        if (await requests.send_exact(index)).error:
            await asyncio.sleep(PAUSE_S)
        return step.duration_s is None or time.monotonic() - begun_s < step.duration_s

    if await requests.warm_up():
        await in_flight(step.concurrency, islice(count(1), step.requests), ask)
    ended_ns = time.time_ns()
    await ctx.sampler.caught_up(ended_ns)
    later, newest, router_error = await _later_starts(ctx, first)
    restarts = ctx.backend_restarts(started_ns, ended_ns)
    restarted = {name: count for name, count in restarts.items() if count}
    metrics = summarise(requests.sent, stated(step.limits))
    metrics["restarts"] = float(len(later) + sum(restarted.values()))
    details = _drifts(ctx, requests.sent, started_ns, ended_ns) | {
        "coordinator_starts": [state.start_id for state in later],
        "errors": dict(Counter(request.error for request in requests.sent if request.error)),
    }
    if rate := details["rate_drift"]:
        metrics["rate_drift_percent_per_hour"] = rate["percent_per_hour"]
    if later and later[-1].start_id:
        ctx.loaded = replace(ctx.loaded, start_id=later[-1].start_id)
    wrong = _wrong(step, requests.sent, len(later), restarted, newest)
    wrong = f"{wrong}; {router_error}" if router_error else wrong
    if wrong is None:
        answer = _answer(metrics, details, monitored=bool(restarts))
        return grade(answer, step.expected, None, None, metrics, details)
    state = None if router_error else await _first_end(ctx, first)
    diagnosis = diagnose_requests(state, requests.sent, wrong)
    return grade(wrong, step.expected, diagnosis, state, metrics, details)


async def _later_starts(
    ctx: Context, first: str
) -> tuple[list[CoordinatorState], CoordinatorState | None, str | None]:
    """The coordinators started after the loaded one, the newest of all, and an error of the router.

    What was measured until such an error is kept.
    """
    try:
        starts = await ctx.router.starts()
    except HarnessError as error:
        return [], None, str(error)
    place = next((number for number, state in enumerate(starts) if state.start_id == first), -1)
    return starts[place + 1 :], starts[-1] if starts else None, None


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
    newest: CoordinatorState | None,
) -> str | None:
    failed = [request for request in sent if request.error]
    problems = []
    if failed:
        problems.append(f"{len(failed)} of {len(sent)} requests failed, the first with: {failed[0].error}")
    if starts:
        problems.append(f"the coordinator was started again {starts} time{'s' * (starts > 1)}")
    if restarted:
        problems.append("restarted backends: " + ", ".join(f"{n} {count}x" for n, count in restarted.items()))
    if newest is None or newest.phase is not CoordinatorPhase.READY:
        problems.append("the coordinator is not up any more")
    answered = [request for request in sent if not request.error]
    # As many as were asked for, where nothing but their count ended the soak.
    wanted = 1 if step.requests is None or step.duration_s is not None else step.requests - len(failed)
    if (answered or not failed) and (short := shortfall(step, answered, route="coordinator", repeats=wanted)):
        problems.append(short)
    return "; ".join(problems) or None


def _drifts(ctx: Context, sent: Sequence[Request], started_ns: int, ended_ns: int) -> dict[str, Any]:
    good = [(request, rate) for request in sent if not request.warmup and (rate := decode_rate(request))]
    times = [(request.sent_ns - started_ns) / 1e9 for request, _ in good]
    rates = [rate for _, rate in good]
    moved = drift(times, rates)
    nodes = [node.name for node in ctx.inventory.backends]
    windows = ctx.sampler.series.windows(nodes, started_ns, ended_ns)
    memory = {
        node: drift([point.time_ns / 1e9 for point in points], [float(point.used_bytes) for point in points])
        for node, points in windows.items()
    }
    middle = median(rates) if rates else 0.0
    return {
        "rate_drift": _per_hour("percent_per_hour", moved, 100 / middle) if moved and middle else None,
        "memory_drift": {
            node: _per_hour("bytes_per_hour", change, 1.0) for node, change in memory.items() if change
        },
    }


def _per_hour(name: str, moved: Drift, scale: float) -> dict[str, Any]:
    slopes = {name: moved.per_s, "low": moved.low, "high": moved.high}
    per_hour = {key: slope * HOUR_S * scale for key, slope in slopes.items()}
    return {**per_hour, "beyond_noise": moved.beyond_noise}


def _answer(metrics: dict[str, float], details: dict[str, Any], *, monitored: bool) -> str:
    """The result of a soak without a problem; ``monitored`` if a monitor reported the backends' restarts."""
    parts = [f"{metrics['requests']:.0f} requests, no error, no restart"]
    if not monitored:
        parts[0] += " of the coordinator (no monitor reported the backends)"
    if (rate := details["rate_drift"]) and rate["beyond_noise"]:
        parts.append(f"tokens/s drift {rate['percent_per_hour']:+.1f} % an hour")
    for node, moved in details["memory_drift"].items():
        if moved["beyond_noise"]:
            parts.append(f"{node}'s memory {moved['bytes_per_hour'] / 2**20:+,.0f} MiB an hour")
    if details["rate_drift"] is None:
        parts.append("too few answers to tell whether the rate drifts")
    if not details["memory_drift"]:
        parts.append("no samples to tell whether memory drifts")
    if len(parts) == 1:
        parts.append("neither rate nor memory drifts beyond the noise")
    return "; ".join(parts) + goodput(metrics)
