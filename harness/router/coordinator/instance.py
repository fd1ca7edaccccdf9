"""One start of a coordinator, from the request to the exit, and the record of it on disk."""

import asyncio
import logging
import math
import re
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

from harness.common.files import write_atomic
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState, LoadTimings
from harness.contracts.diagnosis import Diagnosis, FailureClass
from harness.contracts.plan import LoadRequest
from harness.errors import HarnessError
from harness.router.coordinator.engine import CoordinatorProcess
from harness.router.json_log import log
from harness.router.models.planner import PlannedLoad

_FOLDER_NAME = re.compile(r"\d{8}T\d{6}\.\d+Z-.+")
"""``CoordinatorInstance.id``: the moment first, so that names sort by time."""


class CoordinatorInstance:
    """The state of one start, and the events that others wait for.

    Args:
        load: plan and command line.
        request: what was asked, with the administrator's settings; used again if the instance is lost.
        for_requests: started because requests wait, not because an administrator asked.
        requested_ns: when the load was asked for, UTC nanoseconds.
    """

    def __init__(
        self, load: PlannedLoad, log_dir: Path, *, request: LoadRequest, for_requests: bool, requested_ns: int
    ) -> None:
        moment = datetime.now(UTC)
        self.plan = load.plan
        # The name of a folder: Ollama's model names have colons and slashes.
        self.id = f"{moment:%Y%m%dT%H%M%S.%fZ}-{re.sub(r'[^A-Za-z0-9._-]', '-', self.plan.model)}"
        self.folder = log_dir / self.id
        self.request = request.model_copy(update={"cold": False, "deadline_s": None})
        self.for_requests = for_requests
        self.process: CoordinatorProcess | None = None
        self.timings = LoadTimings(requested_ns=requested_ns)
        self.state = CoordinatorState(
            phase=CoordinatorPhase.STARTING,
            start_id=self.id,
            model=self.plan.model,
            argv=load.argv,
            plan=self.plan,
            log_dir=str(self.folder),
            timings=self.timings,
        )
        self.ended = asyncio.Event()
        """Set once the exit is known and diagnosed."""
        self.died_unexpectedly = False
        """It ended while it was ready: on its own, or killed because it was stalled."""
        self.doomed_reason: str | None = None
        """Why this load can never become ready, whatever its deadline."""
        self.drain_until_s = math.inf
        """Until when a stop waits for requests in flight; monotonic seconds."""
        self.progress_s = time.monotonic()
        """When the last byte of an answer came, or a request was sent or ended; monotonic seconds."""
        self.ready_s: float | None = None
        """When it became ready; monotonic seconds."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._busy = asyncio.Event()

    @property
    def model(self) -> str:
        return self.plan.model

    @property
    def phase(self) -> CoordinatorPhase:
        return self.state.phase

    @property
    def running(self) -> bool:
        """Whether there is, or is about to be, a process."""
        return self.phase not in (CoordinatorPhase.ENDED, CoordinatorPhase.ABSENT)

    @property
    def ending(self) -> bool:
        """Whether the process is gone and why is not known yet."""
        exited = self.process is not None and self.process.exit is not None
        return exited and not self.ended.is_set()

    @property
    def log_path(self) -> Path:
        return self.folder / "server.log"

    def acquire(self) -> None:
        self.state.requests_in_flight += 1
        self._idle.clear()
        self._busy.set()
        self.mark_progress()

    def release(self) -> None:
        self.state.requests_in_flight -= 1
        self.mark_progress()
        if self.state.requests_in_flight == 0:
            self._idle.set()
            self._busy.clear()

    def use_settings(self, request: LoadRequest) -> None:
        """An administrator asked for what is loaded already: these settings are used again after a loss."""
        self.request = request.model_copy(update={"cold": False, "deadline_s": None})
        self.mark_progress()

    def drain_within(self, seconds: float) -> None:
        """Wait no longer than this for requests in flight once it is being stopped; the shortest wins."""
        self.drain_until_s = min(self.drain_until_s, time.monotonic() + seconds)

    def mark_progress(self) -> None:
        """A byte of an answer has come: the coordinator is not stalled."""
        self.progress_s = time.monotonic()

    @property
    def quiet_s(self) -> float:
        return time.monotonic() - self.progress_s

    async def idle_or_ended(self, timeout_s: float | None = None) -> None:
        """Return when no request is in flight, the process has ended, or time is up."""
        await self._first_of(self._idle, timeout_s)

    async def busy_or_ended(self) -> None:
        """Return when a request is in flight or the process has ended."""
        await self._first_of(self._busy, None)

    async def ended_within(self, timeout_s: float) -> bool:
        """Whether the end was known and diagnosed within ``timeout_s``."""
        await self._first_of(self.ended, timeout_s)
        return self.ended.is_set()

    async def _first_of(self, event: asyncio.Event, timeout_s: float | None) -> None:
        if event.is_set() or self.ended.is_set():
            return
        waits = {asyncio.create_task(awaited.wait()) for awaited in (event, self.ended)}
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def signal(self, name: str, reason: str, *, busy: int = 0) -> None:
        """Signal the process and record it.

        Args:
            busy: requests that llama-server works on, where that is known and more than the router's own.
        """
        if self.process and self.process.exit is None:
            in_flight = max(busy, self.state.requests_in_flight)
            self.process.send(name, reason=reason, requests_in_flight=in_flight)
            self.state.signals = list(self.process.signals)

    def mark_ready(self) -> None:
        """Health, model and log agree with the plan: requests may be sent."""
        self.ready_s = time.monotonic()
        self.mark_progress()
        self.state.distributed = self.plan.distributed
        self.state.phase = CoordinatorPhase.READY
        self.save()

    def finish(self, diagnosis: Diagnosis | None) -> None:
        """Record the end; an earlier diagnosis, which knows more, is kept."""
        if self.process:
            self.state.exit = self.process.exit
        if self.state.diagnosis is None:
            self.state.diagnosis = diagnosis
        self.died_unexpectedly = self.phase is CoordinatorPhase.READY
        self.state.phase = CoordinatorPhase.ENDED
        self.save()
        self.ended.set()

    def save(self) -> None:
        """Write ``start.json`` beside the log: argv, plan, timings, signals, exit, diagnosis.

        If it cannot be written, the router continues: the state is in memory too.
        """
        if not self.folder.is_dir():
            return
        try:
            write_atomic(self.folder / "start.json", self.state.model_dump_json(indent=1), sync=False)
        except HarnessError as error:
            log("start_record_not_written", level=logging.ERROR, start=self.id, error=str(error))

    @property
    def failure(self) -> str:
        return str(self.state.diagnosis.failure_class if self.state.diagnosis else FailureClass.UNKNOWN)


def prune(log_dir: Path, *, keep: int, keep_bytes: int) -> None:
    """Remove the folders of the oldest starts: more than ``keep``, or more than ``keep_bytes`` together.

    The newest one stays, and so does whatever else is in ``log_dir``.
    """
    folders = [path for path in log_dir.glob("*") if _FOLDER_NAME.fullmatch(path.name) and path.is_dir()]
    total_bytes = 0
    for newer, folder in enumerate(sorted(folders, reverse=True)):
        total_bytes += sum(_size(file) for file in folder.iterdir())
        if newer and (newer >= keep or total_bytes > keep_bytes):
            try:
                shutil.rmtree(folder)
            except OSError as error:
                log("start_folder_not_removed", level=logging.ERROR, folder=str(folder), error=str(error))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0  # a draft that has just become start.json
