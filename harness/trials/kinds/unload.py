"""The unload trial: stop the coordinator and read how it ended."""

from harness.contracts.coordinator_state import CoordinatorState
from harness.contracts.run_records import Outcome
from harness.trials.context import Context, Finding, judge
from harness.trials.kinds.coordinator_steps import stop
from harness.trials.profile.steps import UnloadStep


async def run_unload(ctx: Context, trial: str, step: UnloadStep) -> Finding:
    """Unload; passes when the coordinator ended in the class expected (``stopped`` unless said otherwise)."""
    state = await stop(ctx, trial, step.deadline_s)
    if state is None:
        return Finding(Outcome.SKIPPED, "no coordinator was up")
    outcome, answer = judge(state.diagnosis, step.expected, describe_end(state))
    return Finding(outcome, answer, step.expected, state, state.diagnosis, _metrics(state))


def describe_end(state: CoordinatorState) -> str:
    """How a coordinator ended, in a few words."""
    if state.exit is None:
        return f"{state.model}: phase {state.phase}, no exit status"
    told = ", ".join(f"{s.name} with {s.requests_in_flight} in flight" for s in state.signals)
    return f"exit status {state.exit.shell}" + (f" after {told}" if told else ", no signal sent")


def _metrics(state: CoordinatorState) -> dict[str, float]:
    if state.exit is None or not state.signals:
        return {}
    return {"stop_s": (state.exit.time_ns - state.signals[0].time_ns) / 1e9}
