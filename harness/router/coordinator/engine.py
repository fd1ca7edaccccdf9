"""Where a coordinator runs, and how it is queried: the interfaces, and the router's own child process."""

import asyncio
import os
import signal
import subprocess
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from harness.common.sockets import can_listen, listens_itself, port_taken
from harness.contracts.diagnosis import ExitStatus, FailureClass, Signal
from harness.llama.releases.catalogue import installed_release
from harness.router.config import RouterConfig
from harness.router.errors import CONNECTION_ERRORS
from harness.router.json_log import log

_TIME_WAIT_S = 65.0
"""Linux keeps a closed connection for 60 s."""
_PORT_POLL_S = 1.0
_HEALTH = "/v1/health"
"""The same answer as ``/health``; llama-server does not log it, so the log stays readable."""
_ONE_TOKEN = {"prompt": "1", "n_predict": 1, "cache_prompt": False, "stream": False}


class LoadError(Exception):
    """A load that did not become ready; the process may still have to be stopped."""

    def __init__(self, failure: FailureClass, message: str) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message


class CoordinatorProcess(Protocol):
    """A running llama-server, wherever it runs."""

    pid: int
    exec_ns: int
    """When it was started, UTC nanoseconds."""
    log_path: Path
    signals: list[Signal]
    """Signals that the router sent, oldest first."""
    exit: ExitStatus | None
    """None while it runs."""

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

    def main_thread_switches(self, process: CoordinatorProcess) -> int:
        """How often the main thread has slept, or was preempted; 0 once it is gone."""

    async def is_healthy(self) -> bool:
        """Whether it says that its model is loaded."""

    async def model_names(self) -> list[str]:
        """The models it serves; none where it does not answer."""

    async def busy_slots(self, timeout_s: float) -> int | None:
        """Requests that llama-server itself works on; None where it does not answer in time.

        llama-server notices only at its next token that a client has left.
        """

    async def generate_token(self) -> bool:
        """Whether it answered a request for one token, however late; False where it broke off.

        The only proof that a coordinator which says that it is healthy still reaches its backends. Any answer
        counts, an error too: it comes from a main loop that runs. The caller sets the deadline.
        """


class LocalEngine:
    """The router's own child on a loopback port."""

    def __init__(self, config: RouterConfig, session: aiohttp.ClientSession) -> None:
        self._port = config.coordinator_port
        self._oom_score_adj = config.oom_score_adj
        self._session = session
        self.url = f"http://127.0.0.1:{self._port}"

    async def spawn(self, argv: Sequence[str], folder: Path) -> CoordinatorProcess:
        if port_taken(self._port):
            raise LoadError(FailureClass.PORT_IN_USE, f"another program listens on 127.0.0.1:{self._port}")
        try:
            await self._wait_for_port(Path(argv[0]))
            return await ChildProcess.spawn(argv, folder, oom_score_adj=self._oom_score_adj)
        except OSError as error:
            raise LoadError(FailureClass.BAD_ARGUMENTS, f"cannot start {argv[0]}: {error}") from None

    def owns_port(self, process: CoordinatorProcess) -> bool:
        return listens_itself(process.pid, self._port)

    def main_thread_switches(self, process: CoordinatorProcess) -> int:
        return context_switches(process.pid)

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

    async def busy_slots(self, timeout_s: float) -> int | None:
        slots = await self._get_json("/slots", timeout_s)
        return sum(bool(slot.get("is_processing")) for slot in slots) if isinstance(slots, list) else None

    async def generate_token(self) -> bool:
        url, timeout = self.url + "/completion", aiohttp.ClientTimeout(total=None, connect=10)
        try:
            async with self._session.post(url, json=_ONE_TOKEN, timeout=timeout) as answer:
                await answer.read()
        except CONNECTION_ERRORS:
            return False
        return True

    async def _get_json(self, path: str, timeout_s: float) -> Any:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.get(self.url + path, timeout=timeout) as answer:
                return await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None

    async def _wait_for_port(self, llama_server: Path) -> None:
        """Wait while connections that another release left in TIME_WAIT keep the port."""
        release, deadline_s = installed_release(llama_server), time.monotonic() + _TIME_WAIT_S
        while release and not can_listen(self._port, release.listens_with) and time.monotonic() < deadline_s:
            log("coordinator_port_awaited", port=self._port, left_s=round(deadline_s - time.monotonic()))
            await asyncio.sleep(_PORT_POLL_S)


def context_switches(pid: int) -> int:
    """Context switches of a process's main thread; 0 once it is gone (proc(5), ``task/TID/status``)."""
    try:
        status = Path(f"/proc/{pid}/task/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)


class ChildProcess:
    """A llama-server that this router started.

    SIGPIPE stays ignored in it (Python's default would restore it), it leads its own process group,
    and the kernel prefers to end it rather than the router. Its output goes straight to ``server.log``.
    """

    def __init__(self, process: Process, folder: Path, exec_ns: int) -> None:
        self._process = process
        self.pid = process.pid
        self.log_path = folder / "server.log"
        self.exec_ns = exec_ns
        self.signals: list[Signal] = []
        self.exit: ExitStatus | None = None
        self._waiter = asyncio.create_task(self._wait())

    @classmethod
    async def spawn(cls, argv: Sequence[str], folder: Path, *, oom_score_adj: int) -> "ChildProcess":
        """Start the child, its log in a new folder.

        Raises:
            OSError: the folder exists or cannot be made, or the binary cannot be run.
        """
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("LLAMA_", "GGML_"))}
        output = _new_log(folder)
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
        return cls(process, folder, exec_ns)

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
        self.exit = ExitStatus(time_ns=time.time_ns(), **end)
        return self.exit


def _new_log(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=False)
    return os.open(folder / "server.log", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)


def _prefer_for_oom(pid: int, adjustment: int) -> None:
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(adjustment))
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended already
    except OSError as error:
        log("oom_score_not_set", pid=pid, error=str(error))
