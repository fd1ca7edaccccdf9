"""What came of a failure: whether its model was started again, and how that went."""

from collections.abc import Sequence

from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState
from harness.router.coordinator.restarts import Failure


def outcome(failure: Failure, starts: Sequence[CoordinatorState]) -> str:
    """In words.

    Args:
        starts: the last starts, oldest first; those of other models say nothing of this one.
    """
    later = [
        one
        for one in starts
        if one.model == failure.model and one.timings and one.timings.requested_ns > failure.time_ns
    ]
    if not later:
        return "not started again since"
    after, timings = later[0], later[0].timings
    if timings and timings.ready_ns:
        again_s = (timings.ready_ns - failure.time_ns) / 1e9
        return f"started again: ready {again_s:.1f} s after the failure"
    if after.phase is CoordinatorPhase.STARTING:
        return "is being started again"
    why = after.diagnosis.failure_class if after.diagnosis else "unknown"
    return f"started again: failed ({why})"
