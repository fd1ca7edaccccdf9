"""Where a coordinator runs, and how it is queried: the interfaces, and the router's own child process."""

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from harness.common.sockets import can_listen, listens_itself, port_taken
from harness.contracts.diagnosis import ExitStatus, FailureClass, Signal
from harness.llama.releases.catalogue import installed_release
from harness.router.config import RouterConfig
from harness.router.coordinator.server_log import DISK_FULL_ERRORS, Count, ServerLog
from harness.router.errors import CONNECTION_ERRORS, RouterError
from harness.router.http.answers import LISTING_BYTES, read_answer
from harness.router.json_log import log

_TIME_WAIT_S = 65.0
"""Linux keeps a closed connection for 60 s."""
_PORT_POLL_S = 1.0
_LOG_END_S = 5.0
"""How long the router waits for the last lines of an ended process."""
_HEALTH = "/v1/health"
"""The same answer as ``/health``; llama-server does not log it, so the log stays readable."""
_ONE_TOKEN = {"prompt": "1", "n_predict": 1, "cache_prompt": False, "stream": False}


class LoadError(Exception):
    """A load that did not become ready; the process may still have to be stopped."""

    def __init__(self, failure: FailureClass, message: str) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message


@dataclass(frozen=True)
class ThreadUse:
    """Use of the main thread since its start."""

    wakes: int = 0
    """How often it slept and woke; preemption of a thread that spins does not count."""
    cpu_s: float = 0.0
    stopped: bool = False
    """By a signal or a debugger: it does nothing until somebody continues it."""


@dataclass(frozen=True)
class Slots:
    """An answer of llama-server's main loop about its slots."""

    busy: int
    """Requests that it works on; it notices only at its next token that a client has left."""
    content: bytes = b""
    """Differs between two answers if a busy slot has made progress: tokens of the prompt or of the answer."""


class CoordinatorProcess(Protocol):
    """A running llama-server, wherever it runs."""

    pid: int
    exec_ns: int
    """When it was started, UTC nanoseconds."""
    log_path: Path
    signals: list[Signal]
    """Signals that the router sent, oldest first."""
    exit: ExitStatus | None
    """None while it runs; its log is complete once it is known."""

    @property
    def log_problem(self) -> LoadError | None:
        """Why lines of its log could not be written."""

    def send(self, name: str, *, reason: str, requests_in_flight: int) -> None:
        """Send a signal and record it, also if it comes too late."""

    async def ended(self, timeout_s: float | None = None) -> ExitStatus | None:
        """Wait for the exit; None if the process outlives ``timeout_s``."""


class Engine(Protocol):
    """Starts llama-server for one coordinator, and queries it."""

    url: str
    """Where requests are sent."""

    async def spawn(self, argv: Sequence[str], folder: Path) -> CoordinatorProcess:
        """Start the process.

        Raises:
            LoadError: its port is taken, or it cannot be started.
        """

    def owns_port(self, process: CoordinatorProcess) -> bool:
        """Whether the process, and no other program, listens at ``url``."""

    def main_thread(self, process: CoordinatorProcess) -> ThreadUse:
        """Use of its main thread; zero once it is gone."""

    async def is_healthy(self) -> bool:
        """Whether it says that its model is loaded."""

    async def model_names(self) -> list[str]:
        """The models it serves; none where it does not answer."""

    async def slots(self, timeout_s: float) -> Slots | None:
        """Its slots, as its main loop reports them; None where it does not answer in time."""

    async def generate_token(self) -> bool:
        """Whether it answered a request for one token, however late; False where it broke off.

        The only proof that a coordinator which says that it is healthy still reaches its backends. Any answer
        counts, an error too: it comes from a main loop that runs. The caller sets the deadline.
        """


class LocalEngine:
    """The router's own child on a loopback port.

    Args:
        count_log_lines: counts lines of its logs that were cut, left out, rotated away or lost.
    """

    def __init__(self, config: RouterConfig, session: aiohttp.ClientSession, count_log_lines: Count) -> None:
        self._config = config
        self._port = config.coordinator_port
        self._session = session
        self._count_log_lines = count_log_lines
        self.url = f"http://127.0.0.1:{self._port}"

    async def spawn(self, argv: Sequence[str], folder: Path) -> CoordinatorProcess:
        if port_taken(self._port):
            raise LoadError(FailureClass.PORT_IN_USE, f"another program listens on 127.0.0.1:{self._port}")
        try:
            await self._wait_for_port(Path(argv[0]))
            server_log = self._new_log(folder)
            return await ChildProcess.spawn(argv, server_log, oom_score_adj=self._config.oom_score_adj)
        except OSError as error:
            full = error.errno in DISK_FULL_ERRORS
            failure = FailureClass.DISK_FULL if full else FailureClass.BAD_ARGUMENTS
            raise LoadError(failure, f"cannot start {argv[0]}: {error}") from None

    def _new_log(self, folder: Path) -> ServerLog:
        folder.mkdir(parents=True, exist_ok=False)
        return ServerLog(
            folder / "server.log",
            limit_bytes=self._config.log_bytes,
            line_bytes=self._config.log_line_bytes,
            count=self._count_log_lines,
        )

    def owns_port(self, process: CoordinatorProcess) -> bool:
        return listens_itself(process.pid, self._port)

    def main_thread(self, process: CoordinatorProcess) -> ThreadUse:
        return thread_use(process.pid)

    async def is_healthy(self) -> bool:
        timeout = aiohttp.ClientTimeout(total=2)
        try:
            async with self._session.get(self.url + _HEALTH, timeout=timeout) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def model_names(self) -> list[str]:
        listing = await self._get_json("/v1/models", 5)
        return [str(entry.get("id")) for entry in listing.get("data", [])] if listing else []

    async def slots(self, timeout_s: float) -> Slots | None:
        slots = await self._get_json("/slots", timeout_s)
        if not isinstance(slots, list):
            return None
        content = hashlib.sha256(repr(slots).encode()).digest()
        return Slots(sum(bool(slot.get("is_processing")) for slot in slots), content)

    async def generate_token(self) -> bool:
        url, timeout = self.url + "/completion", aiohttp.ClientTimeout(total=None, connect=10)
        try:
            async with self._session.post(url, json=_ONE_TOKEN, timeout=timeout) as answer:
                await read_answer(answer, LISTING_BYTES)
        except (*CONNECTION_ERRORS, RouterError):
            return False
        return True

    async def _get_json(self, path: str, timeout_s: float) -> Any:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.get(self.url + path, timeout=timeout) as answer:
                return json.loads(await read_answer(answer, LISTING_BYTES))
        except (aiohttp.ClientError, TimeoutError, ValueError, RouterError):
            return None

    async def _wait_for_port(self, llama_server: Path) -> None:
        """Wait while connections that another release left in TIME_WAIT keep the port."""
        release, deadline_s = installed_release(llama_server), time.monotonic() + _TIME_WAIT_S
        while release and not can_listen(self._port, release.listens_with) and time.monotonic() < deadline_s:
            log("coordinator_port_awaited", port=self._port, left_s=round(deadline_s - time.monotonic()))
            await asyncio.sleep(_PORT_POLL_S)


def thread_use(pid: int) -> ThreadUse:
    """Use of a process's main thread; zero once it is gone (proc(5), ``task/TID/status`` and ``stat``)."""
    task = Path(f"/proc/{pid}/task/{pid}")
    try:
        status, stat = (task / "status").read_text(), (task / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ThreadUse()
    lines = dict(line.split(":", 1) for line in status.splitlines())
    fields = stat.rpartition(")")[2].split()
    cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return ThreadUse(int(lines["voluntary_ctxt_switches"]), cpu_s, fields[0] in "Tt")


class ChildProcess:
    """A llama-server that this router started.

    SIGPIPE stays ignored in it (Python's default would restore it), it leads its own process group,
    and the kernel prefers to end it rather than the router. Its output goes through a pipe to ``server.log``.
    """

    def __init__(self, process: Process, server_log: ServerLog, exec_ns: int) -> None:
        self._process = process
        self._log = server_log
        self.pid = process.pid
        self.log_path = server_log.path
        self.exec_ns = exec_ns
        self.signals: list[Signal] = []
        self.exit: ExitStatus | None = None
        self._waiter = asyncio.create_task(self._wait())

    @classmethod
    async def spawn(cls, argv: Sequence[str], server_log: ServerLog, *, oom_score_adj: int) -> "ChildProcess":
        """Start the child, its output in ``server_log``.

        Raises:
            OSError: the binary cannot be run.
        """
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("LLAMA_", "GGML_"))}
        output = server_log.start()
        try:
            exec_ns = time.time_ns()
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                restore_signals=False,
                start_new_session=True,
            )
        finally:
            os.close(output)
        _prefer_for_oom(process.pid, oom_score_adj)
        return cls(process, server_log, exec_ns)

    @property
    def log_problem(self) -> LoadError | None:
        if (problem := self._log.problem) is None:
            return None
        failure = FailureClass.DISK_FULL if self._log.disk_full else FailureClass.UNKNOWN
        return LoadError(failure, f"{self.log_path} cannot be written: {problem}")

    def send(self, name: str, *, reason: str, requests_in_flight: int) -> None:
        sent = Signal(name=name, time_ns=time.time_ns(), reason=reason, requests_in_flight=requests_in_flight)
        self.signals.append(sent)
        log("coordinator_signalled", pid=self.pid, **sent.model_dump(exclude={"time_ns"}))
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.Signals[name])

    async def ended(self, timeout_s: float | None = None) -> ExitStatus | None:
        done, _ = await asyncio.wait({self._waiter}, timeout=timeout_s)
        return self._waiter.result() if done else None

    async def _wait(self) -> ExitStatus:
        code = await self._process.wait()
        end = {"code": code} if code >= 0 else {"signal": -code}
        status = ExitStatus(time_ns=time.time_ns(), **end)
        if not await asyncio.to_thread(self._log.wait, _LOG_END_S):
            log("coordinator_log_not_closed", pid=self.pid)
        self.exit = status
        return status


def _prefer_for_oom(pid: int, adjustment: int) -> None:
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(adjustment))
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended already
    except OSError as error:
        log("oom_score_not_set", pid=pid, error=str(error))
