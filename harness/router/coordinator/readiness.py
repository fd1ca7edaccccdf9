"""From exec to ready: our child is alive and healthy, it is our model, its log agrees with the plan."""

import asyncio
import time
from urllib.parse import urlsplit

import aiohttp

from harness.contracts.diagnosis import FailureClass
from harness.contracts.load_report import LoadReport
from harness.llama.load_log import PhaseClock, assign_nodes, parse_load_log
from harness.router.coordinator.logtail import LogTail
from harness.router.coordinator.process import ServerProcess
from harness.router.coordinator.start import Start
from harness.router.models.command_line import disagreements
from harness.router.nodes.sockets import listens_itself

_HEALTH = "/v1/health"
"""The same answer as ``/health``; llama-server does not log it, so the log stays readable."""


class LoadError(Exception):
    """A load that did not come to be ready; the child may still have to be stopped."""

    def __init__(self, failure: FailureClass, message: str) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message


class _LoadLog:
    """Keeps a start's phases and load report up to date with its log."""

    def __init__(self, start: Start, process: ServerProcess) -> None:
        self._start = start
        self._tail = LogTail(process.log_path)
        self._clock = PhaseClock(process.exec_ns)
        self._lines: list[str] = []
        self._report = LoadReport()

    def look(self) -> LoadReport:
        """Take in what was added to the log; the report so far."""
        now, added = time.time_ns(), self._tail.new_lines()
        if added:
            for line in added:
                self._clock.line(now, line)
            self._lines += added
            self._report = assign_nodes(parse_load_log(self._lines), self._start.plan)
            self._start.state.report = self._report
            self._start.timings.phases = self._clock.phases
        return self._report


async def watch_load(
    start: Start,
    process: ServerProcess,
    session: aiohttp.ClientSession,
    base_url: str,
    *,
    poll_s: float,
    deadline_s: float,
) -> None:
    """Wait until the coordinator is healthy and its log agrees with the plan.

    Fills in the timings, the phases and the load report of ``start.state`` as they become known.

    Raises:
        LoadError: the child ended, the deadline passed, somebody asked for an end, or the log disagrees.
    """
    log = _LoadLog(start, process)
    deadline = time.monotonic() + deadline_s
    while True:
        log.look()
        if process.exit is not None:
            raise LoadError(FailureClass.UNKNOWN, "llama-server ended while it loaded")
        if start.aborted:
            raise LoadError(FailureClass.STOPPED, start.aborted)
        if start.hopeless:
            raise LoadError(FailureClass.BACKEND_UNREACHABLE, start.hopeless)
        asked_ns = time.time_ns()
        if await _healthy(session, base_url):
            break
        start.timings.loading_ns = asked_ns
        if time.monotonic() > deadline:
            raise LoadError(FailureClass.HUNG, f"not ready {deadline_s:g} s after its start")
        await process.ended(poll_s)
    start.timings.healthy_ns = time.time_ns()
    names = await _model_names(session, base_url)
    if not listens_itself(process.pid, urlsplit(base_url).port or 0) and not process.exit:
        raise LoadError(FailureClass.PORT_IN_USE, f"{base_url} is answered by somebody else: not our server")
    if start.plan.model not in names:
        raise LoadError(
            FailureClass.PORT_IN_USE, f"{base_url} serves {', '.join(names) or 'no model'}: not our server"
        )
    if contradictions := disagreements(start.plan, log.look()):
        raise LoadError(FailureClass.NOT_DISTRIBUTED, "; ".join(contradictions))
    if process.exit is not None:
        raise LoadError(FailureClass.UNKNOWN, "llama-server ended as soon as it had loaded")
    start.timings.ready_ns = time.time_ns()


async def _healthy(session: aiohttp.ClientSession, base_url: str) -> bool:
    try:
        async with session.get(base_url + _HEALTH, timeout=aiohttp.ClientTimeout(total=2)) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def _model_names(session: aiohttp.ClientSession, base_url: str) -> list[str]:
    try:
        async with session.get(base_url + "/v1/models", timeout=aiohttp.ClientTimeout(total=5)) as answer:
            listing = await answer.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return []
    return [str(entry.get("id")) for entry in listing.get("data", [])]


async def busy_slots(session: aiohttp.ClientSession, base_url: str, timeout_s: float) -> int | None:
    """Requests that llama-server itself is working on; None where it does not say in time.

    A client that has left is noticed by llama-server only at its next token.
    """
    try:
        async with session.get(base_url + "/slots", timeout=aiohttp.ClientTimeout(total=timeout_s)) as answer:
            slots = await answer.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
    if not isinstance(slots, list):
        return None
    return sum(bool(slot.get("is_processing")) for slot in slots)


async def wait_ended(start: Start, timeout_s: float) -> bool:
    """Whether the start's end was known and diagnosed within ``timeout_s``."""
    try:
        await asyncio.wait_for(start.ended.wait(), timeout_s)
    except TimeoutError:
        return False
    return True
