"""What the nodes of a plan do at a moment, as they themselves show it: processes, sockets, builds, disks."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from harness.cluster.inventory import Node
from harness.cluster.ssh import run_script
from harness.diagnosis.evidence import BackendSeen
from harness.errors import HarnessError
from harness.monitor.backend_state import RPC_UNIT
from harness.monitor.sample import RPC_SERVERS
from harness.settings import NODE_RPC_CACHE

REACHED_WITHIN_S = 15.0
UNHEARD_S = 1.0
"""What was sent so long after the peer's last word went nowhere: kernels acknowledge much sooner."""
SMALLEST_CACHED = 10 << 20
"""Where less is free, rpc-server cannot write any tensor that it caches, in bytes."""


class _Seen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ProcessSeen(_Seen):
    """One llama.cpp process of a node."""

    program: str
    pid: int
    state: str
    """As in ``/proc/PID/stat``: R, S, D, T (stopped), Z."""
    cpu_s: float
    used_s: float
    """CPU seconds within the look's window."""
    build: str | None
    """``6751 (01d2bdc2b)``, by the manifest beside its program."""


class ConnectionSeen(_Seen):
    """One established RPC connection, from one of its ends."""

    local: str
    peer: str
    unread_bytes: int
    waiting_bytes: int
    """Sent and not acknowledged by the peer's kernel, or not sent yet."""
    since_sent_s: float | None
    since_heard_s: float | None
    """Since the peer's kernel acknowledged anything."""

    @property
    def unheard(self) -> str | None:
        """In words, if bytes wait that the other end's kernel does not take note of; else None.

        A peer that is busy, stopped or slow still has its kernel acknowledge: silence is the way to it.
        """
        if not self.waiting_bytes or self.since_sent_s is None or self.since_heard_s is None:
            return None
        if self.since_heard_s - self.since_sent_s < UNHEARD_S:
            return None
        return (
            f"{self.waiting_bytes} bytes to {self.peer} unacknowledged, the last of them sent "
            f"{self.since_sent_s:.1f} s ago; nothing heard for {self.since_heard_s:.1f} s"
        )


class CacheSeen(_Seen):
    """rpc-server's tensor cache."""

    folder: str
    free_bytes: int
    total_bytes: int
    files: int
    cut: list[str]
    """Files that are smaller than any tensor that rpc-server caches."""

    @property
    def full(self) -> str | None:
        """In words, if no tensor can be cached any more; else None."""
        if self.free_bytes >= SMALLEST_CACHED:
            return None
        text = f"{self.folder}: {self.free_bytes} bytes free of {self.total_bytes / 1e6:.0f} MB"
        if self.cut:
            text += f"; {len(self.cut)} of {self.files} cached tensors are cut, {self.cut[0]} among them"
        return text


class NodeLook(_Seen):
    """What was seen on one node."""

    processes: list[ProcessSeen]
    connections: list[ConnectionSeen]
    cache: CacheSeen | None
    unit: dict[str, str]
    """Properties of ``llama-rpc-server.service``."""

    @property
    def backend(self) -> ProcessSeen | None:
        """Its rpc-server, the unit's own before any other; None where it has none."""
        found = [one for one in self.processes if one.program in RPC_SERVERS]
        own = [one for one in found if str(one.pid) == self.unit.get("MainPID")]
        return next(iter([*own, *found]), None)

    def peer_of(self, endpoint: str) -> str | None:
        """The coordinator that is connected to its ``endpoint``, as ``address:port``."""
        return next((one.peer for one in self.connections if one.local == endpoint), None)


Looks = Mapping[str, NodeLook | str]
"""What was seen of each node, or why it cannot be reached."""


async def look_at(nodes: Sequence[Node], window_s: float = 0.0) -> Looks:
    """Look at nodes, all at once.

    Args:
        window_s: between two looks at CPU times; without one, ``used_s`` says nothing.
    """
    looks = await asyncio.gather(*(_look(node, window_s) for node in nodes))
    return {node.name: look for node, look in zip(nodes, looks, strict=True)}


async def _look(node: Node, window_s: float) -> NodeLook | str:
    argument = {
        "port": int(node.rpc_endpoint.rpartition(":")[2]),
        "cache": str(NODE_RPC_CACHE),
        "unit": RPC_UNIT,
        "window_s": window_s,
    }
    try:
        raw = await run_script(node, "look.py", argument, REACHED_WITHIN_S + window_s, root=True)
    except HarnessError as error:
        return str(error)
    return NodeLook.model_validate(raw)


def builds(looks: Looks) -> dict[str, str]:
    """Build of each node's rpc-server that runs; on a node whose llama-server is another one, its too."""
    found: dict[str, str] = {}
    for name, look in reached(looks).items():
        backend = look.backend
        if backend and backend.build:
            found[name] = backend.build
        for one in look.processes:
            if one.program == "llama-server" and one.build and one.build != found.get(name):
                found[f"{name} (llama-server)"] = one.build
    return found


def full_disks(looks: Looks) -> dict[str, str]:
    """Caches that have no room, by node, in words."""
    return {name: look.cache.full for name, look in reached(looks).items() if look.cache and look.cache.full}


def backends_seen(
    looks: Looks, backends: Iterable[Node], silent_s: Mapping[str, float], window_s: float
) -> dict[str, BackendSeen]:
    """What the looks say of each backend.

    Args:
        silent_s: seconds since each node's last sample, where one is known.
        window_s: the looks' window.
    """
    listed = list(backends)
    unheard = _unheard(looks, listed)
    found = {}
    for node in listed:
        look = looks.get(node.name, "")
        if isinstance(look, str):
            found[node.name] = BackendSeen(reachable=False, silent_s=silent_s.get(node.name))
            continue
        process = look.backend
        found[node.name] = BackendSeen(
            silent_s=silent_s.get(node.name),
            state=process.state if process else None,
            peer=look.peer_of(node.rpc_endpoint),
            cpu_s=process.used_s if process else None,
            window_s=window_s,
            unheard=unheard.get(node.name),
        )
    return found


def reached(looks: Looks) -> dict[str, NodeLook]:
    """The nodes that could be looked at."""
    return {name: look for name, look in looks.items() if not isinstance(look, str)}


def _unheard(looks: Looks, backends: Iterable[Node]) -> dict[str, str]:
    """Backends of whose connections either end waits in vain, and what that end's socket table says."""
    names = {node.rpc_endpoint: node.name for node in backends}
    found: dict[str, str] = {}
    for name, look in reached(looks).items():
        for connection in look.connections:
            about = names.get(connection.peer) or names.get(connection.local)
            if about and connection.unheard:
                found.setdefault(about, f"{name}: {connection.unheard}")
    return found
