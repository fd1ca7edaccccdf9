"""What the machines say of a coordinator that ended without us: OOM kills, and backends that lived on."""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.diagnosis.exit_status import KILL
from harness.monitor.backend_state import RPC_UNIT
from harness.monitor.readers.kernel_log import KernelLog
from harness.monitor.sample import RPC_SERVERS, Sample
from harness.router.config import RouterConfig
from harness.router.coordinator.start import Start
from harness.router.nodes.samples import NodeSamples

_KMSG = Path("/dev/kmsg")
_READS = 10
"""Of the kernel's log, 5,000 records each: more than its ring holds."""
_WAIT_S = 2.5
"""Monitors publish once a second: what has happened is in their samples by then."""
_AGAIN_S = 0.1
_LAST = 64 * 1024
_BROKEN_RECEIVE = b"recv failed ("


@dataclass(frozen=True)
class Testimony:
    """What was seen beside the exit status and the log."""

    head: str | None = None
    """The node that the coordinator ran on, by its name."""
    oom_line: str | None = None
    """The kernel's line of its end."""
    oom_kills: int | None = None
    """OOM kills on that node since it was started; None where nobody counts them."""
    backends_began_ns: Mapping[str, int] = field(default_factory=dict)
    """When the rpc-server that each node has after the end was started."""


class Witness:
    """Asks the nodes' monitors, and the kernel's log where it may be read.

    A deployed router may not read that log: the head node's monitor does, and its samples have the line.
    """

    def __init__(self, config: RouterConfig, nodes: NodeSamples) -> None:
        own = f"{config.address}:"
        self._head = next((one.node for one in config.backends if one.endpoint.startswith(own)), None)
        self._nodes = nodes
        self._kernel = KernelLog(_KMSG) if os.access(_KMSG, os.R_OK) else None
        self._kills_before: dict[str, int | None] = {}

    async def began(self, start: Start) -> None:
        """Remember how many OOM kills the head node had counted before this start."""
        samples = await self._nodes.heard([self._head]) if self._head else {}
        self._kills_before = {start.id: _kills(samples.get(self._head or ""))}

    async def tell(self, start: Start) -> Testimony:
        """What is known of an end; waits for the monitors' next samples where only they can tell."""
        ended = start.process.exit if start.process else None
        if start.process is None or ended is None or start.process.signals:
            return Testimony(self._head)
        if ended.signal == KILL:
            line = await asyncio.to_thread(self._kernels_line, start.process.pid)
            samples = {} if line or not self._head else await self._after(ended.time_ns, [self._head])
            return self._killed(start, line, samples.get(self._head or ""))
        if await asyncio.to_thread(_receive_broke, start.log_path):
            nodes = [share.node for share in start.plan.shares]
            samples = await self._after(ended.time_ns, nodes)
            return Testimony(self._head, backends_began_ns=_rpc_began_ns(samples))
        return Testimony(self._head)

    def _killed(self, start: Start, line: str | None, sample: Sample | None) -> Testimony:
        kernel = sample.kernel if sample else None
        since_ns = start.timings.exec_ns or 0
        if line is None and kernel and kernel.last_oom and (kernel.last_oom_ns or 0) > since_ns:
            # On a lab node the process's number is the host's: the name has to do.
            line = kernel.last_oom if f"({Path(start.state.argv[0]).name[:15]})" in kernel.last_oom else None
        before, after = self._kills_before.get(start.id), _kills(sample)
        grown = after - before if before is not None and after is not None else None
        if grown is None and line is None and self._kernel is not None:
            grown = 0  # the kernel's whole log was read, and it does not name the process
        return Testimony(self._head, line, grown)

    def _kernels_line(self, pid: int) -> str | None:
        if self._kernel is None:
            return None
        line = None
        for _ in range(_READS):
            line = self._kernel.read(None).last_oom
        return line if line and f"Killed process {pid} (" in line else None

    async def _after(self, time_ns: int, nodes: Sequence[str]) -> dict[str, Sample]:
        """The samples of those nodes that say something newer than ``time_ns``, by the head node's clock."""
        deadline = time.monotonic() + _WAIT_S
        while True:
            samples = await self._nodes.heard(list(nodes), now=True)
            newer = {node: sample for node, sample in samples.items() if _taken_ns(sample) > time_ns}
            if len(newer) == len(set(nodes)) or not samples or time.monotonic() > deadline:
                return newer
            await asyncio.sleep(_AGAIN_S)


def _taken_ns(sample: Sample) -> int:
    return sample.time_ns - int((sample.clock_offset_s or 0) * 1e9)


def _kills(sample: Sample | None) -> int | None:
    return sample.memory.oom_kills if sample else None


def _rpc_began_ns(samples: Mapping[str, Sample]) -> dict[str, int]:
    found = {}
    for node, sample in samples.items():
        unit = sample.units.get(RPC_UNIT)
        began = [p.started_ns for p in sample.processes if p.name in RPC_SERVERS and p.started_ns]
        if unit:
            began = [p.started_ns for p in sample.processes if p.pid == unit.main_pid and p.started_ns]
        if began:
            found[node] = max(began)
    return found


def _receive_broke(log: Path) -> bool:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST))
            return _BROKEN_RECEIVE in file.read()
    except OSError:
        return False
