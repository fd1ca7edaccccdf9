"""The unload trial, and what several trials do with the coordinator: stop it, keep its log, read its end."""

import asyncio
import contextlib
from collections.abc import Sequence

from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.contracts.run_records import Outcome, Request
from harness.errors import HarnessError
from harness.trials.context import Context, TrialResult, grade
from harness.trials.kinds.diagnosis_inputs import diagnose_waiting, diagnose_with_nodes
from harness.trials.profile.steps import UnloadStep

DIAGNOSED_WITHIN_S = 8.0


async def run_unload(ctx: Context, trial: str, step: UnloadStep) -> TrialResult:
    """Unload; passes when the coordinator ended in the class expected (``stopped`` unless said otherwise)."""
    state = await stop(ctx, trial, step.deadline_s)
    if state is None:
        return TrialResult(Outcome.SKIPPED, "no coordinator was up")
    metrics = {}
    if state.exit and state.signals:
        metrics["stop_s"] = (state.exit.time_ns - state.signals[0].time_ns) / 1e9
    return grade(_describe_end(state), step.expected, state.diagnosis, state, metrics)


def _describe_end(state: CoordinatorState) -> str:
    if state.exit is None:
        return f"{state.model}: phase {state.phase}, no exit status"
    signals = ", ".join(f"{s.name} with {s.requests_in_flight} in flight" for s in state.signals)
    return f"exit status {state.exit.shell}" + (f" after {signals}" if signals else ", no signal sent")


async def stop(ctx: Context, trial: str | None, deadline_s: float = 60) -> CoordinatorState | None:
    """Stop the coordinator that is up, or read the end of the last one; None if there was none.

    Args:
        deadline_s: how long requests in flight may still take.
    """
    state = await ctx.router.unload(deadline_s)
    if state.phase is CoordinatorPhase.ABSENT and ctx.loaded:
        state = await ctx.router.start(ctx.loaded.start_id) or state
    ctx.loaded = None
    ctx.restore_memory()
    if state.phase is CoordinatorPhase.ABSENT:
        return None
    await keep_log(ctx, state)
    await diagnose_with_nodes(ctx, state)
    record_end(ctx, trial, state)
    return state


async def keep_log(ctx: Context, state: CoordinatorState | None) -> None:
    """Copy a start's log into the run; a router without that log is no error."""
    if state is None or state.start_id is None:
        return
    with contextlib.suppress(HarnessError):
        ctx.run.write_log(f"{state.start_id}.log", await ctx.router.log(state.start_id))


def record_end(ctx: Context, trial: str | None, state: CoordinatorState) -> None:
    """Put the signals and the exit of one start into the run's events."""
    head, start_id = ctx.inventory.head.name, state.start_id
    for signal in state.signals:
        data = {"reason": signal.reason, "requests_in_flight": signal.requests_in_flight}
        ctx.event(signal.time_ns, "signal", trial, head, signal=signal.name, **data, start_id=start_id)
    if ended := state.exit:
        diagnosis = state.diagnosis.failure_class.value if state.diagnosis else None
        data = {"code": ended.code, "signal": ended.signal, "start_id": start_id}
        ctx.event(ended.time_ns, "exit", trial, head, **data, diagnosis=diagnosis)


async def ended_state(ctx: Context, *, late: bool = False) -> CoordinatorState | None:
    """State of the loaded start after something went wrong; waits a little for its end and diagnosis.

    Args:
        late: a request did not end by its deadline; of a coordinator that still runs, the nodes say what it
            waits for.
    """
    if ctx.loaded is None:
        return None
    state = None
    with contextlib.suppress(TimeoutError, HarnessError):
        async with asyncio.timeout(DIAGNOSED_WITHIN_S):
            while True:
                state = await ctx.router.start(ctx.loaded.start_id)
                if state is None or (state.phase is CoordinatorPhase.ENDED and state.diagnosis):
                    break
                await asyncio.sleep(0.5)
    if state is not None:
        await keep_log(ctx, state)
        await (diagnose_with_nodes if state.exit or not late else diagnose_waiting)(ctx, state)
    return state


def any_timed_out(sent: Sequence[Request]) -> bool:
    """Whether a request had no end by its deadline."""
    return any(request.error is not None and request.error.startswith("no end within") for request in sent)


def diagnose_requests(state: CoordinatorState | None, sent: Sequence[Request], wrong: str) -> Diagnosis:
    """Why requests went wrong: the coordinator's own end, where it ended; else what the client saw."""
    if state and state.diagnosis:
        return state.diagnosis
    return Diagnosis(
        failure_class=FailureClass.HUNG if any_timed_out(sent) else FailureClass.UNKNOWN,
        evidence=[Evidence(source="requests", line=wrong)],
        confidence=Confidence.POSSIBLE,
        advice="Read the coordinator's log and the journals of the backends in the run's logs folder.",
    )
