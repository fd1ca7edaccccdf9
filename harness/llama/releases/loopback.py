"""rpc-servers on this computer's loopback, for proofs and benchmarks: whatever is started here is ended."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.monitor.readers.sockets import rpc_socket

ADDRESS = "127.0.0.1"
MOST_BACKENDS = 15
"""What one coordinator can use: with 16 its scheduler aborts, which counts its own processor too
(``GGML_SCHED_MAX_BACKENDS``; seen on 6751 and 11549)."""
STARTS_WITHIN_S = 60.0


@dataclass(frozen=True)
class Backend:
    """One rpc-server."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def endpoint(self) -> str:
        """``address:port``."""
        return f"{ADDRESS}:{self.port}"


@contextmanager
def child(argv: Sequence[str], log: Path, output: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process for as long as the block lasts; the kernel ends it where this process is killed.

    SIGPIPE stays ignored in it, as under systemd, and it hears no Ctrl-C of ours. No variable of the caller's
    changes what llama.cpp does.

    Args:
        log: what it prints is appended here.
        output: its standard output goes here instead.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LLAMA_", "GGML_"))}
    with ExitStack() as files:
        error = files.enter_context(log.open("ab"))
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *argv],
            stdin=subprocess.DEVNULL,
            stdout=files.enter_context(output.open("wb")) if output else error,
            stderr=error,
            env=environment,
            restore_signals=False,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def loopback_backends(
    binaries: Path, count: int, logs: Path, threads: int | None = None
) -> Iterator[tuple[Backend, ...]]:
    """So many rpc-servers on free ports for as long as the block lasts.

    Args:
        logs: folder for ``rpc<number>.log``.
        threads: of each; by default as many as rpc-server thinks right.

    Raises:
        HarnessError: one of them ended before it listened, or does not listen within a minute.
    """
    options = [] if threads is None else ["--threads", str(threads)]
    with ExitStack() as stack:
        started = []
        for number, port in enumerate(free_ports(count)):
            argv = [str(binaries / "rpc-server"), "--host", ADDRESS, "--port", str(port), *options]
            log = logs / f"rpc{number}.log"
            started.append(Backend(stack.enter_context(child(argv, log)), port, log))
        for backend in started:
            _wait_listening(backend)
        yield tuple(started)


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((ADDRESS, 0))
        return [int(one.getsockname()[1]) for one in sockets]


def how_ended(code: int) -> str:
    """A return code as :mod:`subprocess` gives it, in words."""
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


def last_lines(log: Path, count: int = 12) -> list[str]:
    """The last lines of a log that say something."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return [line for line in lines if line.strip()][-count:]


def _wait_listening(backend: Backend) -> None:
    """Look at the kernel's table until it shows the listener: connecting would take a client's place."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not rpc_socket(ADDRESS, backend.port).listening:
        ended, late = backend.process.poll(), time.monotonic() > deadline
        if ended is not None or late:
            seen = f"does not listen after {STARTS_WITHIN_S:.0f} s" if ended is None else how_ended(ended)
            said = (last_lines(backend.log, 1) or ["nothing"])[0]
            raise HarnessError(f"rpc-server {backend.endpoint}: {seen}; its log says: {said}")
        time.sleep(0.02)
