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
from harness.common.text import gib
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState, LoadTimings
from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, ExitStatus, FailureClass
from harness.contracts.plan import LoadRequest
from harness.errors import HarnessError
from harness.router.config import RouterConfig
from harness.router.coordinator.engine import CoordinatorProcess
from harness.router.errors import RouterError
from harness.router.in_flight import InFlight, SentRequest
from harness.router.json_log import log
from harness.router.models.planner import PlannedLoad

_FOLDER_NAME = re.compile(r"\d{8}T\d{6}\.\d+Z-.+")
"""``CoordinatorInstance.id``: the moment first, so that names sort by time."""
DISK_FULL_ADVICE = "Free space on the head node's disk, or set smaller router_log_limit and router_keep_logs."

_ROUTER_ENDED = Diagnosis(
    failure_class=FailureClass.STOPPED,
    evidence=[Evidence(source="router", line="the router that started it ended and did not stop it")],
    confidence=Confidence.CERTAIN,
    advice="Find why the router ended: its node's journal of llama-router.",
)


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
        self.request = _for_restart(request)
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
        self.sent = InFlight()
        """The requests that llama-server has."""
        self.poison: SentRequest | None = None
        """The request that ended it."""
        self.by_request = False
        """A request ended it, whether or not it is known which."""
        self.doomed_reason: str | None = None
        """Why this load can never become ready, whatever its deadline."""
        self.drain_until_s = math.inf
        """Until when a stop waits for requests in flight; monotonic seconds."""
        self.progress_s = time.monotonic()
        """When the last byte of an answer came, or a request was sent or ended; monotonic seconds."""
        self.alive_s = self.progress_s
        """When it last proved that it works: by a byte of an answer, or to ``Liveness``; monotonic seconds.
        The start or end of a request is no proof."""
        self.answering: dict[str, str] = {}
        """Address of each node of the plan whose kernel answered a connection attempt when it was ready."""
        self.ready_s: float | None = None
        """When it became ready; monotonic seconds."""
        self._idle = asyncio.Event()
        self._idle.set()

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
        return self.exit is not None and not self.ended.is_set()

    @property
    def exit(self) -> ExitStatus | None:
        """How the process ended; None until then."""
        return self.process.exit if self.process else None

    @property
    def log_path(self) -> Path:
        return self.folder / "server.log"

    def acquire(self) -> None:
        self.state.requests_in_flight += 1
        self._idle.clear()
        self.progress_s = time.monotonic()

    def release(self) -> None:
        self.state.requests_in_flight -= 1
        self.progress_s = time.monotonic()
        if self.state.requests_in_flight == 0:
            self._idle.set()

    def use_settings(self, request: LoadRequest) -> None:
        """An administrator asked for what is loaded already: these settings are used again after a loss."""
        self.request = _for_restart(request)
        self.mark_progress()

    def drain_within(self, seconds: float) -> None:
        """Wait no longer than this for requests in flight once it is being stopped; the shortest wins."""
        self.drain_until_s = min(self.drain_until_s, time.monotonic() + seconds)

    def mark_progress(self) -> None:
        """A byte of an answer has come: the coordinator is not stalled."""
        self.progress_s = self.alive_s = time.monotonic()

    def prove_alive(self) -> None:
        """It has shown that it works, though no byte of an answer came."""
        self.alive_s = time.monotonic()

    @property
    def quiet_s(self) -> float:
        """Time since a request used it."""
        return time.monotonic() - self.progress_s

    @property
    def unproven_s(self) -> float:
        """Time since it last proved that it works."""
        return time.monotonic() - self.alive_s

    async def idle_or_ended(self, timeout_s: float | None = None) -> None:
        """Return when no request is in flight, the process has ended, or time is up."""
        await self._first_of(self._idle, timeout_s)

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
        self.state.exit = self.exit
        if self.state.diagnosis is None:
            self.state.diagnosis = diagnosis
        self.died_unexpectedly = self.phase is CoordinatorPhase.READY
        self.state.phase = CoordinatorPhase.ENDED
        try:
            self.save()
        finally:
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


def _for_restart(request: LoadRequest) -> LoadRequest:
    return request.model_copy(update={"cold": False, "deadline_s": None})


def make_room(config: RouterConfig) -> None:
    """Remove the folders of the oldest starts, so that all logs stay within their limit with one more.

    Raises:
        RouterError: the disk has no room for that one (507).
    """
    folder, needed = config.log_dir, config.log_bytes
    try:
        folder.mkdir(parents=True, exist_ok=True)
        prune(folder, keep=config.keep_starts, keep_bytes=max(0, config.keep_log_bytes - needed))
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise RouterError(500, "error", f"the log folder {folder} cannot be used: {error.strerror}") from None
    if free < needed:
        seen = f"{folder} has {gib(free, 2)} free; a coordinator's log may take {gib(needed, 2)}"
        evidence = Evidence(source=f"disk {config.head_node or 'head'}", line=seen)
        diagnosis = Diagnosis(
            failure_class=FailureClass.DISK_FULL,
            evidence=[evidence],
            confidence=Confidence.CERTAIN,
            advice=DISK_FULL_ADVICE,
        )
        message = f"the head node's disk is full: {seen}; {DISK_FULL_ADVICE}"
        raise RouterError(507, str(FailureClass.DISK_FULL), message, diagnosis=diagnosis)


def close_records(log_dir: Path) -> None:
    """Mark the starts of a router that was killed as ended: their records have the phase of that moment."""
    for record in log_dir.glob("*/start.json"):
        if not _FOLDER_NAME.fullmatch(record.parent.name):
            continue
        try:
            state = CoordinatorState.model_validate_json(record.read_bytes())
            if state.phase is CoordinatorPhase.ENDED:
                continue
            state.phase = CoordinatorPhase.ENDED
            state.requests_in_flight = 0
            state.diagnosis = _ROUTER_ENDED
            write_atomic(record, state.model_dump_json(indent=1), sync=False)
        except (OSError, ValueError, HarnessError) as error:
            log("start_record_not_written", level=logging.ERROR, start=record.parent.name, error=str(error))


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
