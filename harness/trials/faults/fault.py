"""The base of all faults: injected, recorded with its time, and always undone."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from harness.cluster.inventory import Node
from harness.cluster.ssh import run_on
from harness.contracts.diagnosis import FailureClass, Signal
from harness.errors import HarnessError
from harness.monitor.backend_state import RPC_UNIT

ResultT = TypeVar("ResultT")
_SERVES_WITHIN_S = 40

_UNTIL_IT_SERVES = """
port=$1 unit=$2 tries=$3
until systemctl is-active --quiet "$unit" && ss -Hltn "sport = :$port" | grep -q .; do
  tries=$((tries - 1)); [ "$tries" -gt 0 ] || exit 1; sleep 0.2
done
"""


@dataclass
class Injected:
    """One fault that was caused: what, where and when."""

    kind: str
    node: str
    what: str
    """What was done, in words and figures."""
    time_ns: int
    """UTC on the control machine, when the injection began."""
    expected: FailureClass
    """The class that a diagnosis must have."""
    signals: tuple[Signal, ...] = ()
    """Signals that were sent to the coordinator; a diagnosis counts them among our own."""
    undone_ns: int | None = None


@dataclass
class Fault(ABC):
    """Something that goes wrong on one node, and how it is put right."""

    kind: ClassVar[str]
    expected: ClassVar[FailureClass]

    node: Node
    signals: tuple[Signal, ...] = field(default=(), init=False)
    """Those that the injection sent to the coordinator: the router does not know of them."""

    @abstractmethod
    async def inject(self) -> str:
        """Cause it; what was done, in words.

        Raises:
            HarnessError: it cannot be caused on this node, with what to do about it.
        """

    @abstractmethod
    async def undo(self) -> None:
        """Put everything right, also after an injection that came half way; a second time changes nothing."""


@asynccontextmanager
async def injected(fault: Fault) -> AsyncIterator[Injected]:
    """Cause a fault for as long as the block runs.

    The count of its unit's starts is forgotten first: repeated faults would use up ``StartLimit*``, and the
    unit would stay down for that and not for the fault.

    Raises:
        HarnessError: it cannot be caused, or it cannot be undone.
    """
    await reset_failed(fault.node)
    begun_ns, record = time.time_ns(), None
    try:
        what = await run_to_completion(fault.inject())
        record = Injected(fault.kind, fault.node.name, what, begun_ns, fault.expected, fault.signals)
        yield record
    finally:
        # A caller that is cancelled, however often, still leaves the node as it was.
        await run_to_completion(fault.undo())
        if record:
            record.undone_ns = time.time_ns()


async def run_to_completion(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Await ``work`` until it is done, whatever cancels the caller meanwhile; the cancel comes after it."""
    task = asyncio.create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return task.result()


async def run_as_root(node: Node, *argv: str, stdin: str = "", deadline_s: float = 60) -> str:
    """Standard output of a command that must succeed, run as the superuser.

    Raises:
        HarnessError: it failed, or the node is unreachable.
    """
    result = await run_on(node, *argv, stdin=stdin, deadline_s=deadline_s, root=True)
    if result.returncode != 0:
        output = " ".join((result.stderr or result.stdout).split()) or "no output"
        raise HarnessError(
            f"{node.name}: '{' '.join(argv[:3])}' failed with exit status {result.returncode}: {output}"
        )
    return result.stdout


async def reset_failed(node: Node, unit: str = RPC_UNIT) -> None:
    """Forget a unit's failures and its count of starts."""
    await run_on(node, "systemctl", "reset-failed", unit, root=True)


async def main_pid(node: Node, unit: str = RPC_UNIT) -> int:
    """Process id of a unit's main process.

    Raises:
        HarnessError: the unit does not run.
    """
    output = await run_as_root(node, "systemctl", "show", "--property=MainPID", "--value", unit)
    pid = int(output.strip() or 0)
    if pid == 0:
        raise HarnessError(f"{node.name}: {unit} does not run; see 'systemctl status {unit}' there")
    return pid


async def ensure_serving(node: Node) -> None:
    """Have the node's backend up and listening.

    Raises:
        HarnessError: it does not come up.
    """
    await reset_failed(node)
    await run_as_root(node, "systemctl", "start", RPC_UNIT)
    port = node.rpc_endpoint.rpartition(":")[2]
    script = ("sh", "-s", "--", port, RPC_UNIT, str(_SERVES_WITHIN_S * 5))
    result = await run_on(node, *script, stdin=_UNTIL_IT_SERVES, deadline_s=_SERVES_WITHIN_S * 2, root=True)
    if result.returncode != 0:
        raise HarnessError(
            f"{node.name}: {RPC_UNIT} does not listen on {node.rpc_endpoint} {_SERVES_WITHIN_S} s after "
            f"its start: see 'journalctl -u {RPC_UNIT}' there"
        )
