"""One start of a coordinator, from the request to the exit, and the record of it on disk."""

import asyncio
import logging
import re
import time
from datetime import UTC, datetime
from pathlib import Path

from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState, LoadTimings
from harness.contracts.diagnosis import Diagnosis, FailureClass
from harness.contracts.plan import Plan
from harness.router.coordinator.process import ServerProcess
from harness.router.logs import log


class Start:
    """A coordinator's state and what has to be waited for around it."""

    def __init__(self, plan: Plan, argv: list[str], log_dir: Path, *, requested_ns: int) -> None:
        moment = datetime.now(UTC)
        # A folder's name: Ollama's names have colons and slashes.
        self.id = f"{moment:%Y%m%dT%H%M%S.%fZ}-{re.sub(r'[^A-Za-z0-9._-]', '-', plan.model)}"
        self.folder = log_dir / self.id
        self.plan = plan
        self.process: ServerProcess | None = None
        self.timings = LoadTimings(requested_ns=requested_ns)
        self.state = CoordinatorState(
            phase=CoordinatorPhase.STARTING,
            start_id=self.id,
            model=plan.model,
            argv=argv,
            plan=plan,
            log_dir=str(self.folder),
            timings=self.timings,
        )
        self.ended = asyncio.Event()
        """Set once the exit is known and diagnosed."""
        self.unasked = False
        """Whether it ended while it was lent, without anybody having asked it to stop."""
        self.aborted: str | None = None
        """Why somebody wants this load to end before it is ready."""
        self.hopeless: str | None = None
        """Why this load can never be ready, whatever its deadline."""
        self.moved_at = time.monotonic()
        """When a byte of an answer last came, or a request was last sent or ended; monotonic seconds."""
        self.ready_at: float | None = None
        """When requests could first come; monotonic seconds."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._busy = asyncio.Event()

    @property
    def phase(self) -> CoordinatorPhase:
        """Where it is in its life."""
        return self.state.phase

    @property
    def running(self) -> bool:
        """Whether there is, or is about to be, a process."""
        return self.phase not in (CoordinatorPhase.ENDED, CoordinatorPhase.ABSENT)

    @property
    def log_path(self) -> Path:
        """The child's output."""
        return self.folder / "server.log"

    def serves(self, model: str) -> bool:
        """Whether a request for ``model`` can be sent to it now."""
        return self.phase is CoordinatorPhase.READY and self.state.model == model

    def take(self) -> None:
        """One more request is in flight."""
        self.state.requests_in_flight += 1
        self._idle.clear()
        self._busy.set()
        self.moved()

    def give(self) -> None:
        """One request less is in flight."""
        self.state.requests_in_flight -= 1
        self.moved()
        if self.state.requests_in_flight == 0:
            self._idle.set()
            self._busy.clear()

    def moved(self) -> None:
        """A byte of an answer has come: it is not stalled."""
        self.moved_at = time.monotonic()

    @property
    def quiet_s(self) -> float:
        """How long nothing has been sent to it or come from it, in seconds."""
        return time.monotonic() - self.moved_at

    async def idle_or_ended(self, timeout_s: float | None = None) -> None:
        """Return when no request is in flight, the child has ended, or time is up."""
        await self._either(self._idle, timeout_s)

    async def busy_or_ended(self) -> None:
        """Return when a request is in flight or the child has ended."""
        await self._either(self._busy, None)

    async def _either(self, event: asyncio.Event, timeout_s: float | None) -> None:
        if event.is_set() or self.ended.is_set():
            return
        waits = {asyncio.create_task(event.wait()), asyncio.create_task(self.ended.wait())}
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def signal(self, name: str, reason: str, *, busy: int = 0) -> None:
        """Signal the child and keep the record of it.

        Args:
            busy: requests that llama-server works on, where that is known and more than the router's own.
        """
        if self.process and self.process.exit is None:
            in_flight = max(busy, self.state.requests_in_flight)
            self.process.send(name, reason=reason, requests_in_flight=in_flight)
            self.state.signals = list(self.process.signals)

    def ready(self) -> None:
        """Its log agrees with the plan, and it has proved that it answers: requests may come."""
        self.ready_at = time.monotonic()
        self.moved()
        self.state.distributed = self.plan.distributed
        self.state.phase = CoordinatorPhase.READY
        self.save()

    def finish(self, diagnosis: Diagnosis | None) -> None:
        """Record the end; an earlier, more telling diagnosis is kept."""
        if self.process:
            self.state.exit = self.process.exit
        if self.state.diagnosis is None:
            self.state.diagnosis = diagnosis
        self.unasked = self.phase is CoordinatorPhase.READY
        self.state.phase = CoordinatorPhase.ENDED
        self.save()
        self.ended.set()

    def save(self) -> None:
        """Write ``start.json`` beside the log: argv, plan, timings, signals, exit, diagnosis.

        Without room for it the coordinator is looked after all the same: the state is in memory too.
        """
        if not self.folder.is_dir():
            return
        draft = self.folder / f"start.json.{time.monotonic_ns()}"
        try:
            draft.write_text(self.state.model_dump_json(indent=1))
            draft.replace(self.folder / "start.json")
        except OSError as error:
            draft.unlink(missing_ok=True)
            log("start.json not written", level=logging.ERROR, start=self.id, error=str(error))

    @property
    def failure(self) -> str:
        """Class of its end, for an error."""
        return str(self.state.diagnosis.failure_class if self.state.diagnosis else FailureClass.UNKNOWN)
