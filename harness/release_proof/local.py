"""llama.cpp on this computer: a release built from the nodes' cache, and rpc-servers on the loopback."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.cluster.ansible import run_playbook
from harness.errors import HarnessError
from harness.llama.releases.catalogue import catalogue
from harness.monitor.readers.network import rpc_socket
from harness.settings import PLAYBOOKS, REPOSITORY, cache_dir

ADDRESS = "127.0.0.1"
STARTS_WITHIN_S = 60.0
PROGRAMS = ("rpc-server", "llama-server", "llama-bench", "llama-tensor-cache")
"""A whole build; one with fewer programs has a folder of its own."""


def local_build(build: int, programs: Sequence[str] = PROGRAMS, *, activate: bool = False) -> Path:
    """The folder with the release's programs, built here if neither this computer nor the cache has it.

    Releases that may only be deployed where their known issues are accepted are built all the same: what runs
    here listens on the loopback alone.

    Args:
        build: a release of the catalogue.
        programs: what to build of ``PROGRAMS``.
        activate: point ``local/current`` in the cache at it.

    Raises:
        HarnessError: no such release, its source cannot be fetched, or it could not be built.
    """
    release = catalogue().release(build)
    prefix = cache_dir() / "local"
    with _lock(prefix), tempfile.TemporaryDirectory(prefix="harness-build-") as scratch:
        note = Path(scratch, "folder")
        variables = {
            "llama_cpp_build": release.build,
            "llama_cpp_programs": list(programs),
            "llama_cpp_accepted_issues": [issue.id for issue in catalogue().refusals(build)],
            "llama_cpp_activate": activate,
            "llama_cpp_prefix": str(prefix),
            "llama_cpp_ccache_dir": str(cache_dir() / "ccache"),
            "local_build_note": str(note),
        }
        inventory = REPOSITORY / "inventories" / "localhost.yml"
        run_playbook(PLAYBOOKS / "local_build.yml", inventory, variables, title=f"llama.cpp {build}")
        return Path(note.read_text(encoding="utf-8")).resolve() / "bin"


@contextmanager
def _lock(prefix: Path) -> Iterator[None]:
    """One build at a time: two of one release would overwrite each other's work."""
    try:
        prefix.mkdir(parents=True, exist_ok=True)
        lock = (prefix / ".lock").open("ab")
    except OSError as error:
        raise HarnessError(
            f"cannot keep builds in {prefix}: {error.strerror}; set LLAMA_HARNESS_CACHE"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"harness: waits for another build in {prefix}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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

    SIGPIPE stays ignored in it, as under systemd, and Ctrl-C does not reach it. No variable of the caller's
    environment changes what llama.cpp does.

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
        threads: of each; by default rpc-server's own choice.

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
    """Loopback ports that nothing listens on now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((ADDRESS, 0))
        return [int(each.getsockname()[1]) for each in sockets]


def how_ended(code: int) -> str:
    """A return code as :mod:`subprocess` gives it, in words."""
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


def last_lines(log: Path, count: int = 12) -> list[str]:
    """The last lines of a log that are not blank."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return [line for line in lines if line.strip()][-count:]


def _wait_listening(backend: Backend) -> None:
    """Look at the kernel's table until it shows the listener: connecting would take a client's place."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not rpc_socket(ADDRESS, backend.port).listening:
        ended, late = backend.process.poll(), time.monotonic() > deadline
        if ended is not None or late:
            state = f"does not listen after {STARTS_WITHIN_S:.0f} s" if ended is None else how_ended(ended)
            log = (last_lines(backend.log, 1) or ["nothing"])[0]
            raise HarnessError(f"rpc-server {backend.endpoint}: {state}; its log says: {log}")
        time.sleep(0.02)
