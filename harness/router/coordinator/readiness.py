"""From exec to ready: the process is healthy, it has our model, and its log agrees with the plan."""

import os
import time
from pathlib import Path

from harness.contracts.coordinator_state import LoadReport
from harness.contracts.diagnosis import FailureClass
from harness.llama.load_log import PhaseClock, assign_nodes, parse_load_log
from harness.router.coordinator.engine import CoordinatorProcess, Engine, LoadError
from harness.router.coordinator.instance import CoordinatorInstance
from harness.router.models.command_line import contradiction

_REPORTED = (b"loading model tensors", b"buffer size", b"offloaded", b"build")
"""A line without one of these adds nothing to the load report."""

_LOG_LAG_S = 2.0


class LogTail:
    """A log file that is read while another process writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._partial = b""

    def new_lines(self) -> list[bytes]:
        """Lines that were completed since the last call."""
        with self._path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._offset:  # rotated: its first part is as before
                self._offset, self._partial = 0, b""
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        return lines


class LoadLog:
    """Keeps an instance's phases and load report up to date with its log, in time linear in the log."""

    def __init__(self, instance: CoordinatorInstance, process: CoordinatorProcess) -> None:
        self._instance = instance
        self._tail = LogTail(process.log_path)
        self._clock = PhaseClock(process.exec_ns)
        self._reported: list[str] = []
        self._report = LoadReport()

    @property
    def complete(self) -> bool:
        """Whether the line was read that ends a load."""
        return self._clock.ended

    def update(self) -> LoadReport:
        """Read what was added to the log; the report so far."""
        now_ns, added = time.time_ns(), self._tail.new_lines()
        for line in added:
            self._clock.line(now_ns, line.decode(errors="replace"))
        reported = [line.decode(errors="replace") for line in added if any(key in line for key in _REPORTED)]
        if reported:
            self._reported += reported
            self._report = assign_nodes(parse_load_log(self._reported), self._instance.plan)
            self._instance.state.report = self._report
        if added:
            self._instance.timings.phases = self._clock.phases
        return self._report


async def wait_until_ready(
    instance: CoordinatorInstance,
    process: CoordinatorProcess,
    engine: Engine,
    *,
    poll_s: float,
    deadline_s: float,
) -> None:
    """Wait until the coordinator is healthy and its log agrees with the plan.

    Fills in the timings, the phases and the load report of ``instance.state`` as they become known.

    Raises:
        LoadError: the process ended, the deadline passed, the load is doomed, or the log disagrees.
    """
    load_log, timings = LoadLog(instance, process), instance.timings
    deadline = time.monotonic() + deadline_s
    while True:
        load_log.update()
        if process.exit is not None:
            raise LoadError(FailureClass.UNKNOWN, "llama-server ended while it loaded")
        if instance.doomed_reason:
            raise LoadError(FailureClass.BACKEND_UNREACHABLE, instance.doomed_reason)
        if process.log_problem:
            raise process.log_problem
        polled_ns = time.time_ns()
        if await engine.is_healthy():
            break
        timings.loading_ns = polled_ns
        if time.monotonic() > deadline:
            raise LoadError(FailureClass.HUNG, f"not ready {deadline_s:g} s after its start")
        await process.ended(poll_s)
    timings.healthy_ns = time.time_ns()
    names = await engine.model_names()
    if not engine.owns_port(process) and not process.exit:
        raise LoadError(FailureClass.PORT_IN_USE, f"another program answers at {engine.url}: not our server")
    if instance.model not in names:
        raise LoadError(
            FailureClass.PORT_IN_USE, f"{engine.url} serves {', '.join(names) or 'no model'}: not our server"
        )
    await _wait_for_log(load_log, instance, process, poll_s)
    if reason := contradiction(instance.plan, load_log.update()):
        raise process.log_problem or LoadError(FailureClass.NOT_DISTRIBUTED, reason)
    if process.exit is not None:
        raise LoadError(FailureClass.UNKNOWN, "llama-server ended as soon as it had loaded")
    timings.ready_ns = time.time_ns()


async def _wait_for_log(
    load_log: LoadLog, instance: CoordinatorInstance, process: CoordinatorProcess, poll_s: float
) -> None:
    """Wait for the lines of a load that is over: they come through a pipe, health does not."""
    deadline = time.monotonic() + _LOG_LAG_S
    while contradiction(instance.plan, load_log.update()) and not load_log.complete:
        if process.log_problem or time.monotonic() > deadline or await process.ended(poll_s):
            return
