"""Steps around the coordinator that several trials share: stopping it, keeping its log, reading its end."""

import asyncio
import contextlib
import time
from collections.abc import Sequence

from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass
from harness.contracts.run_records import Request
from harness.errors import HarnessError
from harness.trials.context import Context
from harness.trials.kinds.diagnosis_inputs import diagnose_waiting, diagnose_with_nodes
from harness.trials.lab import lab_memory_limit

DIAGNOSED_WITHIN_S = 8.0


async def stop(ctx: Context, trial: str | None, deadline_s: float = 60) -> CoordinatorState | None:
    """Stop the coordinator that is up, or read the end of the one that was; None if there was none."""
    state = await ctx.router.unload(deadline_s)
    if state.phase is CoordinatorPhase.ABSENT:
        was = ctx.loaded
        state = (await ctx.router.start(was.start_id) if was else None) or state
    ctx.loaded = None
    feed_again(ctx)
    if state.phase is CoordinatorPhase.ABSENT:
        return None
    await keep_log(ctx, state)
    await diagnose_with_nodes(ctx, state)
    record_end(ctx, trial, state)
    return state


def feed_again(ctx: Context) -> None:
    """Give every starved machine its memory back; one that cannot have it is a warning of the run."""
    for node in sorted(ctx.starved):
        try:
            if ctx.lab is not None:
                lab_memory_limit(ctx.lab, node, None)
        except HarnessError as error:
            ctx.event(time.time_ns(), "warning", None, node, message=f"still starved: {error}")
    ctx.starved.clear()


async def keep_log(ctx: Context, state: CoordinatorState | None) -> None:
    """Copy a start's log into the run; a router that does not have it is no reason to fail."""
    if state is None or state.start_id is None:
        return
    with contextlib.suppress(HarnessError):
        ctx.run.write_log(f"{state.start_id}.log", await ctx.router.log(state.start_id))


def record_end(ctx: Context, trial: str | None, state: CoordinatorState) -> None:
    """Put the signals and the exit of one start into the run's events."""
    for signal in state.signals:
        ctx.event(
            signal.time_ns,
            "signal",
            trial,
            ctx.inventory.head.name,
            signal=signal.name,
            reason=signal.reason,
            requests_in_flight=signal.requests_in_flight,
            start_id=state.start_id,
        )
    if state.exit:
        diagnosis = state.diagnosis
        ctx.event(
            state.exit.time_ns,
            "exit",
            trial,
            ctx.inventory.head.name,
            code=state.exit.code,
            signal=state.exit.signal,
            start_id=state.start_id,
            diagnosis=diagnosis.failure_class.value if diagnosis else None,
        )


async def ended_state(ctx: Context, *, late: bool = False) -> CoordinatorState | None:
    """State of the loaded start after something went wrong; waits a little for its end and diagnosis.

    Args:
        late: a request had no end by its deadline: if it still runs, the nodes are asked what it waits for.
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


def any_late(sent: Sequence[Request]) -> bool:
    """Whether a request had no end by its deadline."""
    return any(request.error is not None and request.error.startswith("no end within") for request in sent)


def diagnose_requests(state: CoordinatorState | None, sent: Sequence[Request], wrong: str) -> Diagnosis:
    """Why requests went wrong: the coordinator's own end, where it ended; else what the client saw."""
    if state and state.diagnosis:
        return state.diagnosis
    return Diagnosis(
        failure_class=FailureClass.HUNG if any_late(sent) else FailureClass.UNKNOWN,
        evidence=[Evidence(source="requests", line=wrong)],
        confidence=Confidence.POSSIBLE,
        advice="Read the coordinator's log and the journals of the backends in the run's logs folder.",
    )
