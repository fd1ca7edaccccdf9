"""What ends a run before its last trial: its deadline, or a failure that the profile does not go on after."""

import asyncio
import time
from collections.abc import Coroutine, Sequence

from harness.contracts.run_records import Outcome, Trial
from harness.trials.context import Finding
from harness.trials.profile.profile import StopWhen


def why_stop(when: StopWhen, trials: Sequence[Trial]) -> str | None:
    """Why no further trial is to start after these; None where the run goes on."""
    failed = [trial for trial in trials if trial.outcome is Outcome.FAILED]
    for trial in failed:
        if trial.diagnosis and trial.diagnosis.failure_class in when.classes:
            return f"trial {trial.id} ended in {trial.diagnosis.failure_class}"
    if when.failed is not None and len(failed) >= when.failed:
        return f"{len(failed)} of {len(trials)} trials failed"
    return None


class RunDeadline:
    """The time that a run may take, on a clock that nobody sets."""

    def __init__(self, seconds: float | None, spent_s: float = 0.0) -> None:
        """Begin to count, at what the finished trials of a run that goes on took."""
        self._seconds = seconds
        self._ends = None if seconds is None else time.monotonic() + seconds - spent_s

    @property
    def over(self) -> bool:
        """Whether it has passed."""
        return self._ends is not None and time.monotonic() >= self._ends

    def __str__(self) -> str:
        return f"the run's deadline of {self._seconds:g} s has passed"

    async def hold(self, work: Coroutine[object, object, Finding]) -> Finding:
        """What a trial finds, or that the deadline passed before it found anything."""
        left = None if self._ends is None else max(0.0, self._ends - time.monotonic())
        limit = asyncio.timeout(left)
        try:
            async with limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
            return Finding(Outcome.FAILED, f"ended unfinished: {self}")
