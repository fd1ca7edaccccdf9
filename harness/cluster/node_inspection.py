"""What a node is and does now, read over SSH: facts and clock; processes, sockets, tensor cache and logs.

It needs no monitor on the node, and connects to nothing but SSH.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from harness.cluster.inventory import Node
from harness.cluster.ssh import run_on, run_script
from harness.contracts.run_records import NodeFacts
from harness.diagnosis.inputs import BackendSnapshot
from harness.errors import HarnessError
from harness.llama.rpc.messages import HASH_THRESHOLD_BYTES
from harness.monitor.backend_state import RPC_UNIT
from harness.monitor.sample import RPC_SERVERS
from harness.settings import NODE_LLAMA_CPP

UNITS = ("llama-rpc-server", "llama-node-monitor", "llama-pool-server", "llama-router")
REACHED_WITHIN_S = 15.0
LOGS_WITHIN_S = 45.0
UNACKNOWLEDGED_S = 1.0
"""Bytes sent so long after the peer's last acknowledgement are lost: kernels acknowledge much sooner."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LlamaProcess(_Strict):
    """One llama.cpp process of a node."""

    program: str
    pid: int
    state: str
    """As in ``/proc/PID/stat``: R, S, D, T (stopped), Z."""
    cpu_s: float
    used_s: float
    """CPU seconds within the inspection's window."""
    build: str | None
    """``6751 (01d2bdc2b)``, by the manifest beside its program."""


class RpcConnection(_Strict):
    """One RPC connection, from one of its ends."""

    local: str
    peer: str
    unread_bytes: int
    waiting_bytes: int
    """Sent and not acknowledged by the peer's kernel, or not sent yet."""
    since_sent_s: float | None
    since_acknowledged_s: float | None
    """Since the peer's kernel acknowledged anything."""

    @property
    def unacknowledged(self) -> str | None:
        """In words, if bytes wait that the other end's kernel does not acknowledge; else None.

        The kernel of a peer that is busy, stopped or slow still acknowledges: silence means a broken link.
        """
        if not self.waiting_bytes or self.since_sent_s is None or self.since_acknowledged_s is None:
            return None
        if self.since_acknowledged_s - self.since_sent_s < UNACKNOWLEDGED_S:
            return None
        return (
            f"{self.waiting_bytes} bytes to {self.peer} unacknowledged, the last of them sent "
            f"{self.since_sent_s:.1f} s ago; nothing heard for {self.since_acknowledged_s:.1f} s"
        )


class CacheDisk(_Strict):
    """rpc-server's tensor cache and its disk."""

    folder: str
    free_bytes: int
    total_bytes: int
    files: int
    cut: list[str]
    """Files that are smaller than any tensor that rpc-server caches."""

    @property
    def full(self) -> str | None:
        """In words, if no tensor can be cached any more; else None."""
        if self.free_bytes >= HASH_THRESHOLD_BYTES:
            return None
        text = f"{self.folder}: {self.free_bytes} bytes free of {self.total_bytes / 1e6:.0f} MB"
        if self.cut:
            text += f"; {len(self.cut)} of {self.files} cached tensors are cut, {self.cut[0]} among them"
        return text


class NodeInspection(_Strict):
    """What one node does."""

    processes: list[LlamaProcess]
    connections: list[RpcConnection]
    cache: CacheDisk | None
    unit: dict[str, str]
    """Properties of the unit that was inspected."""
    installed_build: str | None = None
    """Build that ``current`` names, whether it runs or not."""
    journal: list[str] = []
    """The unit's."""
    kernel: list[str] = []

    @property
    def backend(self) -> LlamaProcess | None:
        """Its rpc-server, the unit's own before any other; None where it has none."""
        servers = [process for process in self.processes if process.program in RPC_SERVERS]
        return min(servers, key=lambda process: str(process.pid) != self.unit.get("MainPID"), default=None)

    def backend_evidence(
        self, endpoint: str, window_s: float, silent_s: float | None = None, unacknowledged: str | None = None
    ) -> BackendSnapshot:
        """What it shows of its rpc-server at ``endpoint``.

        Args:
            window_s: the inspection's.
            silent_s: seconds since the node's last sample, where one is known.
            unacknowledged: bytes to or from it that nobody acknowledges, in words.
        """
        process = self.backend
        return BackendSnapshot(
            silent_s=silent_s,
            state=process.state if process else None,
            peer=next((c.peer for c in self.connections if c.local == endpoint), None),
            cpu_s=process.used_s if process else None,
            window_s=window_s,
            unacknowledged=unacknowledged,
        )


Inspections = Mapping[str, NodeInspection | str]
"""By node, what it does, or why it cannot be reached."""


async def inspect_nodes(
    nodes: Sequence[Node], window_s: float = 0.0, unit: str = RPC_UNIT, log_lines: int = 0
) -> Inspections:
    """Inspect nodes, all at once.

    Args:
        window_s: seconds between two readings of the CPU times; without one, ``used_s`` says nothing.
        unit: the unit to inspect.
        log_lines: the most lines to read of the unit's journal and of the kernel log.
    """
    results = await asyncio.gather(*(_inspect(node, window_s, unit, log_lines) for node in nodes))
    return {node.name: result for node, result in zip(nodes, results, strict=True)}


async def _inspect(node: Node, window_s: float, unit: str, log_lines: int) -> NodeInspection | str:
    argument = {
        "port": int(node.rpc_endpoint.rpartition(":")[2]),
        "cache": str(node.rpc_cache),
        "cache_threshold": HASH_THRESHOLD_BYTES,
        "llama_cpp": str(NODE_LLAMA_CPP),
        "unit": unit,
        "log_lines": log_lines,
        "window_s": window_s,
    }
    deadline_s = REACHED_WITHIN_S + window_s + (LOGS_WITHIN_S if log_lines else 0)
    try:
        raw = await run_script(node, "inspect_node.py", argument, deadline_s, root=True)
    except HarnessError as error:
        return str(error)
    return NodeInspection.model_validate(raw)


def reachable(inspections: Inspections) -> dict[str, NodeInspection]:
    """The nodes that could be inspected."""
    return {name: node for name, node in inspections.items() if not isinstance(node, str)}


def builds(inspections: Inspections) -> dict[str, str]:
    """Build of each node's rpc-server that runs; on a node whose llama-server is another one, its too."""
    by_node: dict[str, str] = {}
    for name, node in reachable(inspections).items():
        if node.backend and node.backend.build:
            by_node[name] = node.backend.build
        for process in node.processes:
            if process.program == "llama-server" and process.build and process.build != by_node.get(name):
                by_node[f"{name} (llama-server)"] = process.build
    return by_node


def full_disks(inspections: Inspections) -> dict[str, str]:
    """Caches that have no room, by node, in words."""
    nodes = reachable(inspections).items()
    return {name: node.cache.full for name, node in nodes if node.cache and node.cache.full}


def backend_evidence(
    inspections: Inspections, backends: Sequence[Node], silent_s: Mapping[str, float], window_s: float
) -> dict[str, BackendSnapshot]:
    """What the inspections show of each backend.

    Args:
        silent_s: seconds since each node's last sample, where one is known.
        window_s: the inspections' window.
    """
    unacknowledged: dict[str, str] = {}
    names = {node.rpc_endpoint: node.name for node in backends}
    for name, reached in reachable(inspections).items():
        for connection in reached.connections:
            backend = names.get(connection.peer) or names.get(connection.local)
            if backend and connection.unacknowledged:
                unacknowledged.setdefault(backend, f"{name}: {connection.unacknowledged}")
    evidence = {}
    for node in backends:
        inspection, silent = inspections.get(node.name, ""), silent_s.get(node.name)
        evidence[node.name] = (
            BackendSnapshot(reachable=False, silent_s=silent)
            if isinstance(inspection, str)
            else inspection.backend_evidence(
                node.rpc_endpoint, window_s, silent, unacknowledged.get(node.name)
            )
        )
    return evidence


async def read_journal(node: Node, unit: str, since_ns: int) -> str:
    """Journal of one unit since a moment (UTC, nanoseconds)."""
    return await _journalctl(node, since_ns, "-u", unit)


async def read_kernel_log(node: Node, since_ns: int) -> str:
    """The kernel's own lines since a moment (UTC, nanoseconds); a lab node's journal has none."""
    return await _journalctl(node, since_ns, "--dmesg")


async def _journalctl(node: Node, since_ns: int, *selection: str) -> str:
    options = ("--since", f"@{since_ns // 10**9}", "-o", "short-iso-precise", "--no-pager")
    return (await run_on(node, "journalctl", *selection, *options, deadline_s=60, root=True)).stdout


@dataclass(frozen=True)
class NodeState:
    """A node's facts, and how far its clock is from ours."""

    facts: NodeFacts
    clock_offset_ns: int
    """Node's clock minus ours; positive where the node is ahead."""
    clock_error_ns: int
    """Half of the round trip without the script's own time: the offset is known no better than this."""


async def read_state(node: Node) -> NodeState:
    """Facts of one node as they are now."""
    argument = {"llama_cpp": str(NODE_LLAMA_CPP), "units": [f"{unit}.service" for unit in UNITS]}
    before_ns = time.time_ns()
    raw = await run_script(node, "facts.py", argument)
    after_ns = time.time_ns()
    offset_ns, error_ns = clock_offset(before_ns, raw.pop("began_ns"), raw.pop("ended_ns"), after_ns)
    facts = NodeFacts(name=node.name, address=node.address, groups=sorted(node.groups), **raw)
    return NodeState(facts, offset_ns, error_ns)


def clock_offset(before_ns: int, began_ns: int, ended_ns: int, after_ns: int) -> tuple[int, int]:
    """Offset of a node's clock from ours and the offset's largest error, as NTP computes them (RFC 5905, 8).

    Args:
        before_ns: our clock before the request.
        began_ns: the node's clock when it began to answer.
        ended_ns: the node's clock when it had the answer.
        after_ns: our clock when the answer was here.
    """
    offset_ns = ((began_ns - before_ns) + (ended_ns - after_ns)) // 2
    return offset_ns, ((after_ns - before_ns) - (ended_ns - began_ns)) // 2


async def with_surroundings(node: Node, facts: NodeFacts) -> NodeFacts:
    """The facts, with the settings and exposure of the node's units and the rate of its link.

    Read apart from the other facts, because it takes about a second.
    """
    raw = await run_script(node, "facts.py", {"units": sorted(facts.units), "address": node.address})
    settings: dict[str, dict[str, str]] = raw.pop("settings")
    units = {name: properties | settings.get(name, {}) for name, properties in facts.units.items()}
    return facts.model_copy(update=raw | {"units": units})
