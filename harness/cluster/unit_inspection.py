"""Why a unit of ours is as it is, read from its node over SSH; nothing connects to what the unit serves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from harness.cluster.inventory import Node
from harness.cluster.node_inspection import NodeInspection, inspect_nodes, reachable
from harness.contracts.diagnosis import Diagnosis, ExitStatus
from harness.diagnosis import exit_status as exits
from harness.diagnosis.classify import classify
from harness.diagnosis.inputs import LLAMA_SERVER, RPC_SERVER, Inputs
from harness.diagnosis.node_conditions import STOPPED_STATES
from harness.errors import HarnessError
from harness.monitor.backend_state import RPC_UNIT

_LINES = 2000
_WINDOW_S = 3.1
_SYSTEMD = " systemd["
_STARTS = ("]: Starting ", "]: Started ")
_STOPPING = "]: Stopping "
_CLEAN = ": Deactivated successfully"
"""What systemd logs of a main process that ended as its unit allows."""


@dataclass(frozen=True)
class UnitDiagnosis:
    """The state of a unit on one node, and what explains it."""

    node: str
    unit: str
    state: str
    """As systemd says it: ``active (running), 2 restarts``."""
    diagnosis: Diagnosis


async def diagnose_units(
    nodes: Sequence[Node], unit: str, warn: Callable[[str], None] = lambda line: None
) -> list[UnitDiagnosis]:
    """Diagnose a unit on each of these nodes; the nodes are compared with each other.

    Args:
        warn: called with a line for each node that cannot be reached, where another one has the unit.

    Raises:
        HarnessError: no node that can be reached has the unit; names the nodes that cannot be reached.
    """
    name = unit if "." in unit else f"{unit}.service"
    inspections = await inspect_nodes(nodes, _WINDOW_S, name, _LINES)
    failures = [result for result in inspections.values() if isinstance(result, str)]
    loaded = {node: i for node, i in reachable(inspections).items() if i.unit.get("LoadState") == "loaded"}
    if not loaded:
        without = ", ".join(reachable(inspections))
        raise HarnessError("; ".join([*([f"no unit {name} on {without}"] if without else []), *failures]))
    for failure in failures:
        warn(failure)
    builds = {node: i.installed_build for node, i in loaded.items() if i.installed_build}
    return [
        UnitDiagnosis(
            node.name, name, _state(inspection.unit), classify(unit_inputs(node, name, inspection, builds))
        )
        for node in nodes
        if (inspection := loaded.get(node.name))
    ]


def unit_inputs(node: Node, unit: str, inspection: NodeInspection, builds: Mapping[str, str]) -> Inputs:
    """What a node shows of its unit: of the process that runs, or of the last that ended.

    Args:
        builds: installed build by node.
    """
    properties = inspection.unit
    is_backend = unit == RPC_UNIT
    lines, ended = last_end(inspection.journal)
    restarted = properties.get("NRestarts", "0") != "0"
    backend = inspection.backend_evidence(node.rpc_endpoint, _WINDOW_S)
    stalled = is_backend and backend.peer is not None and backend.state in STOPPED_STATES
    running = stalled or (properties.get("ActiveState") == "active" and not (restarted and ended))
    full = inspection.cache.full if is_backend and inspection.cache else None
    return Inputs(
        process=RPC_SERVER if is_backend else LLAMA_SERVER,
        node=node.name,
        running=running,
        waiting=stalled,
        exit=None if running else ended,
        logs={f"journal {node.name}": inspection.journal if running else lines},
        journal={node.name: inspection.kernel if running else during(inspection.kernel, lines)},
        unit={} if running else properties,
        builds=builds if is_backend else {},
        backends={node.name: backend} if is_backend else {},
        full_disks={node.name: full} if full else {},
        expect_distributed=False,
    )


def last_end(journal: Sequence[str]) -> tuple[list[str], ExitStatus | None]:
    """The journal's lines of the last process of a unit that ended, and how it ended.

    Without an end in it, all of the journal.
    """
    ends = [i for i, line in enumerate(journal) if exits.from_journal(line) or _CLEAN in line]
    if not ends:
        return list(journal), None
    last = ends[-1]
    starts = [i for i, line in enumerate(journal) if _SYSTEMD in line and any(w in line for w in _STARTS)]
    # A process may print before systemd says that it is started.
    first = max((i for i in starts if i < last and _STARTS[0] in journal[i]), default=None)
    if first is None:
        first = max((i for i in starts if i < last), default=0)
    # systemd says why right after the end: "Failed with result", "killed by the OOM killer".
    after = min((i for i in starts if i > last), default=len(journal))
    lines = list(journal[first:after])
    ended = exits.from_journal(journal[last])
    if ended is None:
        # A clean end: it was stopped, or exited with 0, as rpc-server does on fatal start errors too.
        stopped = any(_STOPPING in line for line in lines)
        ended = ExitStatus(time_ns=0, signal=int(exits.TERM)) if stopped else ExitStatus(time_ns=0, code=0)
    return lines, ended


def during(kernel: Sequence[str], lines: Sequence[str]) -> list[str]:
    """Those of the kernel's lines that are as old as a process: an older kill explains nothing of its end.

    Args:
        kernel: lines as ``journalctl -o short-iso-precise`` prints them.
        lines: the journal's lines of that process, printed the same way.
    """
    times = [moment for line in lines if (moment := _time(line))]
    if not times:
        return list(kernel)
    first, last = min(times), max(times) + timedelta(seconds=1)
    return [line for line in kernel if (moment := _time(line)) is None or first <= moment <= last]


def _time(line: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(line.partition(" ")[0])
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def _state(properties: Mapping[str, str]) -> str:
    restarts = int(properties.get("NRestarts") or 0)
    again = f", {restarts} restart{'s' if restarts != 1 else ''}" if restarts else ""
    return f"{properties.get('ActiveState')} ({properties.get('SubState')}){again}"
