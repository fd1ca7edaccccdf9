"""What a diagnosis is made from, as plain data, and the one builder of it for a coordinator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.contracts.coordinator_state import CoordinatorState, LoadReport
from harness.contracts.diagnosis import ExitStatus, Signal
from harness.contracts.plan import Plan
from harness.diagnosis.scanner import Log

LLAMA_SERVER = "llama-server"
RPC_SERVER = "rpc-server"


@dataclass(frozen=True)
class BackendSnapshot:
    """A backend while its coordinator waits, as its own node shows it."""

    reachable: bool = True
    """Whether the node answers, by its monitor or over SSH."""
    silent_s: float | None = None
    """Seconds since its last sample, where that is known."""
    state: str | None = None
    """Of rpc-server's process, as in ``/proc/PID/stat``: R, S, D, T (stopped), Z; None without a process."""
    peer: str | None = None
    """The coordinator that it serves (``address:port``); None while no client is connected."""
    cpu_s: float | None = None
    """CPU seconds that rpc-server used in the window."""
    window_s: float = 0.0
    unacknowledged: str | None = None
    """In words, RPC bytes to or from it that wait without the other end's kernel acknowledging anything."""


class Pressure(Protocol):
    """What the rule needs of one sample."""

    @property
    def time_ns(self) -> int:
        """UTC, nanoseconds."""

    @property
    def rpc_swap_bytes(self) -> int:
        """Memory of rpc-server that is in swap."""

    @property
    def major_faults(self) -> int:
        """Major faults of the node, a counter."""

    @property
    def memory_full_avg10(self) -> float | None:
        """PSI of the last 10 s in percent; None where the kernel counts none for the node."""


@dataclass(frozen=True)
class Inputs:
    """Everything known of one process that ended, or that runs and is in question."""

    process: str = LLAMA_SERVER
    """``llama-server`` or ``rpc-server``."""
    node: str | None = None
    """The node it ran on."""
    running: bool = False
    waiting: bool = False
    """It runs, and a request or a load has made no progress until its deadline."""
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
    backends: Mapping[str, BackendSnapshot] = field(default_factory=dict)
    """What the backends' nodes say of them while the coordinator waits."""
    pressure: Mapping[str, Sequence[Pressure]] = field(default_factory=dict)
    """Memory figures of the nodes while the coordinator waits, in order of time."""
    full_disks: Mapping[str, str] = field(default_factory=dict)
    """Disks without space by node, in words: ``/var/cache/llama.cpp: 0 bytes free of 64 MiB``."""


@dataclass(frozen=True)
class NodeEvidence:
    """What one node shows of the time while a process ran on it, or used it. None where it is unknown."""

    journal: Log = ()
    """Lines of its units' journals and of its kernel log."""
    oom_kills: int | None = None
    """OOM kills while the process ran."""
    rpc_restarts: int | None = None
    """Restarts of its rpc-server while the process ran."""
    rpc_started_ns: int | None = None
    """When the rpc-server that it has after the end was started, UTC."""
    build: str | None = None
    """Build and commit of llama.cpp: ``6751 (01d2bdc2b)``."""
    server_build: str | None = None
    """The same of its llama-server, where it is not that of its rpc-server."""
    backend: BackendSnapshot | None = None
    pressure: Sequence[Pressure] = ()
    full_disk: str | None = None
    """Its cache's disk where that has no space, in words."""


def coordinator_inputs(
    state: CoordinatorState,
    head: str,
    log: Path | None,
    nodes: Mapping[str, NodeEvidence],
    *,
    running: bool = False,
    waiting: bool = False,
) -> Inputs:
    """The inputs of a coordinator that has ended, runs or waits.

    Args:
        head: the node it ran on.
        log: its own log; a file that does not exist counts as no log.
        waiting: judge it as it was while it made no progress: how it was ended later explains nothing.
    """
    plan, timings = state.plan, state.timings
    builds = {name: node.build for name, node in nodes.items() if node.build}
    builds |= {
        f"{name} (llama-server)": node.server_build for name, node in nodes.items() if node.server_build
    }
    return Inputs(
        node=head,
        running=running or waiting,
        waiting=waiting,
        argv=state.argv,
        exit=None if waiting else state.exit,
        signals=() if waiting else state.signals,
        logs={log.name: log} if log and log.exists() else {},
        journal={name: node.journal for name, node in nodes.items() if node.journal},
        units={
            name: {"NRestarts": str(node.rpc_restarts)} for name, node in nodes.items() if node.rpc_restarts
        },
        oom_kills={name: node.oom_kills for name, node in nodes.items() if node.oom_kills is not None},
        began_ns=timings.exec_ns if timings else None,
        backends_began_ns={name: node.rpc_started_ns for name, node in nodes.items() if node.rpc_started_ns},
        plan=None if waiting else plan,
        report=None if waiting else state.report,
        expect_distributed=not waiting and (plan is None or plan.distributed),
        builds=builds,
        backends={name: node.backend for name, node in nodes.items() if node.backend},
        pressure={name: node.pressure for name, node in nodes.items() if node.pressure},
        full_disks={name: node.full_disk for name, node in nodes.items() if node.full_disk},
    )
