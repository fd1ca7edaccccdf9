"""One llama-server child: its log folder, the signals we sent it, and how it ended."""

import asyncio
import os
import signal
import subprocess
import time
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from harness.contracts.diagnosis import ExitStatus, Signal
from harness.router.logs import log


class ServerProcess:
    """A running child and, once it has ended, its exit status.

    SIGPIPE stays ignored in it (Python's default would restore it), it leads a process group of its own,
    and the kernel prefers to end it rather than the router. Its output goes straight to ``server.log``.
    """

    def __init__(self, process: Process, folder: Path, exec_ns: int) -> None:
        self._process = process
        self.folder = folder
        self.exec_ns = exec_ns
        self.signals: list[Signal] = []
        self.exit: ExitStatus | None = None
        self._waiter = asyncio.create_task(self._wait())

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """Everything that the child printed."""
        return self.folder / "server.log"

    @classmethod
    async def spawn(cls, argv: Sequence[str], folder: Path, *, oom_score_adj: int) -> "ServerProcess":
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
        """Send a signal and record it; one that comes too late is recorded too."""
        sent = Signal(name=name, time_ns=time.time_ns(), reason=reason, requests_in_flight=requests_in_flight)
        self.signals.append(sent)
        log("signal", pid=self.pid, **sent.model_dump(exclude={"time_ns"}))
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.Signals[name])

    async def ended(self, timeout_s: float | None = None) -> ExitStatus | None:
        """The exit status, as soon as there is one; None if the child outlives ``timeout_s``."""
        done, _ = await asyncio.wait({self._waiter}, timeout=timeout_s)
        return self._waiter.result() if done else None

    async def _wait(self) -> ExitStatus:
        code = await self._process.wait()
        self.exit = ExitStatus(
            time_ns=time.time_ns(),
            code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
        )
        return self.exit


def _new_log(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=False)
    return os.open(folder / "server.log", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o640)


def _prefer_for_oom(pid: int, adjustment: int) -> None:
    with suppress(ProcessLookupError):
        try:
            Path(f"/proc/{pid}/oom_score_adj").write_text(str(adjustment))
        except FileNotFoundError:
            return
        except OSError as error:
            log("oom_score_adj not set", pid=pid, error=str(error))
