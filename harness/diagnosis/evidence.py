"""What a diagnosis is made from. Pure data: whoever asks has read it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.contracts.diagnosis import ExitStatus, Signal
from harness.contracts.load_report import LoadReport
from harness.contracts.plan import Plan
from harness.diagnosis.logs.scanner import Log
from harness.diagnosis.thrash import Pressure

LLAMA_SERVER = "llama-server"
RPC_SERVER = "rpc-server"


@dataclass(frozen=True)
class BackendSeen:
    """What a backend's own node says of it while its coordinator waits."""

    reachable: bool = True
    """Whether the node answers, by its monitor or over SSH."""
    silent_s: float | None = None
    """Seconds since its last sample, where that is known."""
    state: str | None = None
    """Of rpc-server's process, as in ``/proc/PID/stat``: R, S, D, T (stopped), Z; None without a process."""
    peer: str | None = None
    """The coordinator that it serves (``address:port``); None while nobody is connected."""
    cpu_s: float | None = None
    """CPU seconds that rpc-server used in the window that was looked at."""
    window_s: float = 0.0
    unheard: str | None = None
    """In words, RPC bytes to or from it that wait without the other end's kernel acknowledging anything."""


@dataclass(frozen=True)
class Inputs:
    """Everything known of one process that ended, or that runs and should be looked at."""

    process: str = LLAMA_SERVER
    """``llama-server`` or ``rpc-server``."""
    node: str | None = None
    """The node it ran on."""
    running: bool = False
    waiting: bool = False
    """It runs, and a request or a load makes no progress: somebody waited as long as they were ready to."""
    argv: Sequence[str] = ()
    exit: ExitStatus | None = None
    signals: Sequence[Signal] = ()
    """Signals that we sent to it."""
    logs: Mapping[str, Log] = field(default_factory=dict)
    """Its own logs by file name: a path, or lines in order."""
    journal: Mapping[str, Log] = field(default_factory=dict)
    """Lines of the units' journals and of the kernel log, by node."""
    unit: Mapping[str, str] = field(default_factory=dict)
    """Properties of its own systemd unit, where it is one: Result, ExecMainCode, ExecMainStatus, ..."""
    units: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Properties of ``llama-rpc-server.service`` by node: ActiveState, NRestarts, Result."""
    oom_kills: Mapping[str, int] = field(default_factory=dict)
    """OOM kills since the process was started, by node."""
    began_ns: int | None = None
    """When the process was started, UTC."""
    backends_began_ns: Mapping[str, int] = field(default_factory=dict)
    """When the rpc-server that each node has after the end was started, UTC."""
    plan: Plan | None = None
    report: LoadReport | None = None
    """What the log says of the load; needed for ``not_distributed`` only."""
    expect_distributed: bool = True
    """Whether every layer should have been on the backends."""
    builds: Mapping[str, str] = field(default_factory=dict)
    """Build and commit of llama.cpp by node, from the installed manifests: ``6751 (01d2bdc2b)``."""
    backends: Mapping[str, BackendSeen] = field(default_factory=dict)
    """What the backends' nodes say of them while the coordinator waits."""
    pressure: Mapping[str, Sequence[Pressure]] = field(default_factory=dict)
    """Memory figures of the nodes while the coordinator waits, in order of time."""
    full_disks: Mapping[str, str] = field(default_factory=dict)
    """Disks without space by node, in words: ``/var/cache/llama.cpp: 0 bytes free of 64 MiB``."""


def read_log(path: Path) -> list[str]:
    """Lines of a log, whatever bytes it holds."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines()
