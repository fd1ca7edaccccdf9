"""The coordinator: one llama-server at a time over the backends, as a child of the router."""

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from harness.diagnosis.model import FailureClass
from harness.errors import HarnessError
from harness.router.catalogue import Catalogue
from harness.router.command import coordinator_argv, release_args
from harness.router.config import RouterConfig
from harness.router.errors import RouterError
from harness.router.loading import LoadError, busy_slots, wait_ended, watch_load
from harness.router.logs import log
from harness.router.metrics import Metrics
from harness.router.plans import LoadRequest, plan_load
from harness.router.process import ServerProcess
from harness.router.start import Start
from harness.router.verdict import diagnose_end, diagnose_load
from harness.runs.schema import CoordinatorPhase, CoordinatorState

_KEPT_STARTS = 20
_KILL_WAIT_S = 10
_DIAGNOSIS_WAIT_S = 5
_SLOTS_WAIT_S = 0.5
_LISTEN = "0A"
"""TCP_LISTEN in /proc/net/tcp."""
_FIRST_LEASE_S = 1
"""A coordinator that was started for a request is not taken away before that request had this long."""
_STATUS = {FailureClass.HUNG: 504, FailureClass.STOPPED: 409}


class Coordinator:
    """Starts, watches, lends and stops llama-server. The backends are leased to one start at a time."""

    def __init__(
        self, config: RouterConfig, catalogue: Catalogue, session: aiohttp.ClientSession, metrics: Metrics
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._catalogue = catalogue
        self._session = session
        self._lease = asyncio.Lock()
        self._current: Start | None = None
        self._starts: deque[Start] = deque(maxlen=_KEPT_STARTS)
        self._wanted: dict[str, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self.url = f"http://127.0.0.1:{config.coordinator_port}"

    @property
    def state(self) -> CoordinatorState:
        """Of the current start, or of the last one."""
        return self._current.state if self._current else CoordinatorState(phase=CoordinatorPhase.ABSENT)

    @property
    def starts(self) -> list[CoordinatorState]:
        """The last starts, oldest first."""
        return [start.state for start in self._starts]

    @property
    def closing(self) -> bool:
        """Whether the router is stopping: nothing is started any more."""
        return self._closing

    def log_path(self, start_id: str) -> Path | None:
        """Log of one of the last starts."""
        return next((start.log_path for start in self._starts if start.id == start_id), None)

    async def load(self, request: LoadRequest) -> CoordinatorState:
        """Make the model ready as asked; another one is unloaded first.

        Raises:
            RouterError: it cannot be planned, did not load in time, ended, or was not distributed.
        """
        async with self._lease:
            return (await self._load(request)).state

    async def unload(self, *, signal: str, deadline_s: float) -> CoordinatorState:
        """Stop the coordinator: when idle, or busy once ``deadline_s`` has passed. Ends a load too."""
        start = self._abort_load("unloaded while it was loading")
        async with self._lease:
            if start is None and self._current and self._current.running:
                start = self._current
                await self._stop(start, "unload asked for", signal=signal, idle_s=deadline_s)
            return start.state if start else CoordinatorState(phase=CoordinatorPhase.ABSENT)

    @asynccontextmanager
    async def lend(self, model: str) -> AsyncIterator[Start]:
        """A ready coordinator for one request; loads the model if need be, once for all who wait.

        Raises:
            RouterError: the load failed.
        """
        while not (self._current and self._current.serves(model)):
            await asyncio.shield(self._wanted.get(model) or self._want(model))
        start = self._current
        start.take()
        try:
            yield start
        finally:
            start.give()

    async def explain(self, start: Start, seen: str) -> RouterError:
        """The error for a request whose coordinator broke off: with the diagnosis, if the child has died."""
        if await wait_ended(start, _DIAGNOSIS_WAIT_S) and (diagnosis := start.state.diagnosis):
            message = f"the coordinator ended while it answered ({start.failure}): {diagnosis.advice}"
            return RouterError(502, start.failure, message, diagnosis=diagnosis)
        return RouterError(502, FailureClass.UNKNOWN, f"the coordinator broke off the answer: {seen}")

    async def close(self) -> None:
        """Stop the child before anything else goes away; nothing is started after this."""
        self._closing = True
        self._abort_load("the router stops")
        async with self._lease:
            if self._current and self._current.running:
                await self._stop(self._current, "the router stops", idle_s=self._config.drain_s)
        await asyncio.gather(*self._tasks)

    def _abort_load(self, why: str) -> Start | None:
        start = self._current
        if start is None or start.phase is not CoordinatorPhase.STARTING:
            return None
        start.aborted = why
        return start

    def _want(self, model: str) -> asyncio.Future[None]:
        """One load for everybody who waits for ``model``; they share its failure too."""
        ready = self._wanted[model] = asyncio.get_running_loop().create_future()

        async def make_ready() -> None:
            async with self._lease:
                failure = RouterError(500, "error", f"{model}: the load broke off: see the router's journal")
                try:
                    start = await self._load(LoadRequest(model=model))
                    ready.set_result(None)
                except RouterError as error:
                    failure = error
                    return
                finally:
                    self._wanted.pop(model, None)
                    if not ready.done():
                        # Whatever happened: nobody may wait for ever.
                        ready.set_exception(failure)
                        ready.exception()  # seen: those who waited may all have left
                with suppress(TimeoutError):
                    await asyncio.wait_for(start.leased.wait(), _FIRST_LEASE_S)

        self._background(make_ready())
        return ready

    def _background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, request: LoadRequest) -> Start:
        if self._closing:
            raise RouterError(503, "stopping", "the router is stopping")
        asked_ns = time.time_ns()
        file = self._catalogue.find(request.model)
        if file is None:
            known = ", ".join(found.name for found in self._catalogue.files()) or "none"
            raise RouterError(
                404, "unknown_model", f"no model '{request.model}' on the head node; it has: {known}"
            )
        try:
            header = await asyncio.to_thread(self._catalogue.header, file)
        except HarnessError as error:
            raise RouterError(422, FailureClass.MODEL_INVALID, str(error)) from None
        plan = plan_load(request, header, self._config)
        argv = coordinator_argv(
            self._config.llama_server,
            plan,
            port=self._config.coordinator_port,
            flags=[*release_args(self._config.llama_server), *self._config.flags, *request.flags],
        )
        current = self._current
        if current and current.serves(plan.model) and current.state.argv == argv and not request.cold:
            return current
        room_ns = time.time_ns()
        if current and current.running:
            await self._stop(current, f"{plan.model} is to be loaded", idle_s=self._config.drain_s)
        if request.cold:
            await asyncio.to_thread(_drop_page_cache, file.path)
        # What was asked for besides the load, an unload and a cold cache, is not part of its time.
        start = Start(plan, argv, self._config.log_dir, requested_ns=asked_ns + time.time_ns() - room_ns)
        return await self._start(start, request)

    async def _start(self, start: Start, request: LoadRequest) -> Start:
        deadline_s = request.deadline_s or self._config.load_deadline_s
        self._current = start
        self._starts.append(start)
        try:
            process = await self._spawn(start)
            await watch_load(
                start, process, self._session, self.url, poll_s=self._config.poll_s, deadline_s=deadline_s
            )
        except LoadError as error:
            start.state.diagnosis = diagnose_load(start, error.failure, error.message)
            if start.state.report:
                start.state.distributed = False
            await self._stop(start, error.message, idle_s=0)
            failure = start.failure if error.failure is FailureClass.UNKNOWN else str(error.failure)
            message = f"{start.plan.model}: {error.message}"
            raise RouterError(_STATUS.get(error.failure, 502), failure, message, state=start.state) from None
        except asyncio.CancelledError:
            await asyncio.shield(self._stop(start, "the load was cancelled", idle_s=0))
            raise
        start.ready()
        self._metrics.coordinator_loaded(start.timings.load_s or 0)
        log("coordinator ready", start=start.id, load_s=start.timings.load_s)
        return start

    async def _spawn(self, start: Start) -> ServerProcess:
        port = self._config.coordinator_port
        try:
            if _port_taken(port):
                raise LoadError(FailureClass.PORT_IN_USE, f"something else listens on 127.0.0.1:{port}")
            process = await ServerProcess.spawn(
                start.state.argv, start.folder, oom_score_adj=self._config.oom_score_adj
            )
        except OSError as error:
            raise LoadError(
                FailureClass.BAD_ARGUMENTS, f"cannot start {start.state.argv[0]}: {error}"
            ) from None
        start.process = process
        start.state.pid = process.pid
        start.timings.exec_ns = process.exec_ns
        start.save()
        log("coordinator started", start=start.id, pid=process.pid, argv=start.state.argv)
        self._metrics.coordinator_started()
        self._background(self._watch(start, process))
        return process

    async def _watch(self, start: Start, process: ServerProcess) -> None:
        await process.ended()
        start.finish(await asyncio.to_thread(diagnose_end, start))
        self._metrics.coordinator_ended(start.state.diagnosis)
        log(
            "coordinator ended",
            start=start.id,
            exit=process.exit and process.exit.shell,
            failure=start.failure,
        )

    async def _stop(self, start: Start, reason: str, *, idle_s: float, signal: str = "SIGTERM") -> None:
        """End a start: wait until it is idle, signal it, kill it if it does not go. All is recorded."""
        if start.process is None:
            start.finish(None)
            return
        was_ready = start.phase is CoordinatorPhase.READY
        if start.running:
            start.state.phase = CoordinatorPhase.STOPPING
        busy = await self._idle(start, idle_s) if was_ready else 0
        start.signal(signal, reason, busy=busy)
        patience = self._config.stop_deadline_s
        if not await wait_ended(start, patience):
            start.signal("SIGKILL", f"still there {patience:g} s after {signal}")
            if not await wait_ended(start, _KILL_WAIT_S):
                log("coordinator outlives SIGKILL", level=logging.ERROR, pid=start.process.pid)

    async def _idle(self, start: Start, patience_s: float) -> int:
        """Wait until neither the router nor llama-server has a request; how many it still has after that."""
        deadline = time.monotonic() + patience_s
        await start.idle_or_ended(patience_s)
        while not start.ended.is_set():
            left = deadline - time.monotonic()
            busy = await busy_slots(self._session, self.url, max(left, _SLOTS_WAIT_S))
            if busy is None:
                busy = 1  # an idle server answers at once
            if not busy or left <= 0:
                return busy
            await wait_ended(start, self._config.poll_s)
        return 0


def _port_taken(port: int) -> bool:
    """Whether the kernel's socket table shows a listener on ``port``; nothing is bound or connected to."""
    tables = (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6"))
    rows = [row.split() for table in tables if table.exists() for row in table.read_text().splitlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] == _LISTEN for row in rows)


def _drop_page_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
