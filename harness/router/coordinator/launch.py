"""From a plan to a running llama-server, and to its end: what is signalled, when, and why."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from pathlib import Path

import aiohttp

from harness.contracts.coordinator_state import CoordinatorPhase
from harness.contracts.diagnosis import FailureClass
from harness.llama.releases.installed import installed_release
from harness.router.config import RouterConfig
from harness.router.coordinator.log_retention import prune
from harness.router.coordinator.process import ServerProcess
from harness.router.coordinator.readiness import LoadError, busy_slots, wait_ended, watch_load
from harness.router.coordinator.start import Start
from harness.router.coordinator.verdict import diagnose_end, diagnose_load
from harness.router.coordinator.witness import Witness
from harness.router.errors import RouterError
from harness.router.http.metrics import Metrics
from harness.router.logs import log
from harness.router.nodes.sockets import can_listen, port_taken

_KILL_WAIT_S = 10
_SECOND_SIGNAL_S = 2.0
"""Builds since 11434 that are told to stop amid a request wait for ever; a second signal ends them."""
_SLOTS_WAIT_S = 0.5
_TIME_WAIT_S = 65.0
"""Linux keeps a closed connection for 60 s."""
_PORT_LOOK_S = 1.0
_STATUS = {FailureClass.HUNG: 504, FailureClass.STOPPED: 409, FailureClass.BACKEND_UNREACHABLE: 503}

Proof = Callable[[Start], Awaitable[None]]
"""Asks a coordinator that looks ready to show that it is; raises LoadError."""


class Launcher:
    """Starts and stops llama-server for one ``Start`` at a time.

    Args:
        on_end: called once the end of a child is known and diagnosed.
    """

    def __init__(
        self,
        config: RouterConfig,
        session: aiohttp.ClientSession,
        url: str,
        metrics: Metrics,
        witness: Witness,
        on_end: Callable[[Start], None],
    ) -> None:
        self._config = config
        self._session = session
        self._url = url
        self._metrics = metrics
        self._witness = witness
        self._on_end = on_end
        self._watches: set[asyncio.Task[None]] = set()

    async def launch(self, start: Start, *, deadline_s: float, proof: Proof | None = None) -> None:
        """Start the child and wait until it is ready.

        Raises:
            RouterError: it did not come to be ready; it has been stopped, and the state says why.
        """
        try:
            process = await self._spawn(start)
            await watch_load(
                start,
                process,
                self._session,
                self._url,
                poll_s=self._config.poll_s,
                deadline_s=deadline_s,
            )
            if proof:
                await proof(start)
        except LoadError as error:
            if start.state.diagnosis is None:
                start.state.diagnosis = diagnose_load(start, error.failure, error.message)
            if start.state.report:
                start.state.distributed = False
            await self.stop(start, error.message, idle_s=0)
            failure = start.failure if error.failure is FailureClass.UNKNOWN else str(error.failure)
            message = f"{start.plan.model}: {error.message}"
            raise RouterError(_STATUS.get(error.failure, 502), failure, message, state=start.state) from None
        except asyncio.CancelledError:
            await asyncio.shield(self.stop(start, "the load was cancelled", idle_s=0))
            raise
        start.ready()
        self._metrics.coordinator_loaded(start.timings.load_s or 0)
        log("coordinator ready", start=start.id, load_s=start.timings.load_s)

    async def stop(self, start: Start, reason: str, *, idle_s: float, signal: str = "SIGTERM") -> None:
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
        if busy and not await wait_ended(start, min(patience, _SECOND_SIGNAL_S)):
            start.signal(signal, "a request was in flight, so it needs a second signal", busy=busy)
        if not await wait_ended(start, patience):
            start.signal("SIGKILL", f"still there {patience:g} s after {signal}")
            if not await wait_ended(start, _KILL_WAIT_S):
                log("coordinator outlives SIGKILL", level=logging.ERROR, pid=start.process.pid)

    async def close(self) -> None:
        """Wait until the ends of all children are known."""
        await asyncio.gather(*self._watches)

    async def _spawn(self, start: Start) -> ServerProcess:
        port = self._config.coordinator_port
        try:
            if port_taken(port):
                raise LoadError(FailureClass.PORT_IN_USE, f"something else listens on 127.0.0.1:{port}")
            await self._listenable(port, Path(start.state.argv[0]))
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
        await self._witness.began(start)
        watch = asyncio.create_task(self._watch(start, process), context=Context())
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        return process

    async def _listenable(self, port: int, llama_server: Path) -> None:
        """Wait while connections that another release left in TIME_WAIT keep the port."""
        release, deadline = installed_release(llama_server), time.monotonic() + _TIME_WAIT_S
        while release and not can_listen(port, release.listens_with) and time.monotonic() < deadline:
            log("coordinator waits for its port", port=port, left_s=round(deadline - time.monotonic()))
            await asyncio.sleep(_PORT_LOOK_S)

    async def _watch(self, start: Start, process: ServerProcess) -> None:
        await process.ended()
        seen = await self._witness.tell(start)
        start.finish(await asyncio.to_thread(diagnose_end, start, seen))
        self._metrics.coordinator_ended(start.state.diagnosis)
        log(
            "coordinator ended",
            start=start.id,
            exit=process.exit and process.exit.shell,
            failure=start.failure,
        )
        self._on_end(start)
        await asyncio.to_thread(
            prune,
            self._config.log_dir,
            keep=self._config.keep_starts,
            keep_bytes=self._config.keep_log_bytes,
        )

    async def _idle(self, start: Start, patience_s: float) -> int:
        """Wait until neither the router nor llama-server has a request; how many it still has after that."""
        deadline = time.monotonic() + patience_s
        await start.idle_or_ended(patience_s)
        while not start.ended.is_set():
            left = deadline - time.monotonic()
            busy = await busy_slots(self._session, self._url, max(left, _SLOTS_WAIT_S))
            if busy is None:
                busy = 1  # an idle server answers at once
            if not busy or left <= 0:
                return busy
            await wait_ended(start, self._config.poll_s)
        return 0


def drop_page_cache(path: Path) -> None:
    """Make the kernel forget what it has read of a file."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
