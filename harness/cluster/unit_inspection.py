"""Why a unit of ours is as it is, asked of its node over SSH; nothing connects to what the unit serves."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from harness.cluster.inventory import Node
from harness.cluster.ssh import run_script
from harness.contracts.diagnosis import Diagnosis, ExitStatus
from harness.diagnosis import exit_status as exits
from harness.diagnosis.classify import classify
from harness.diagnosis.evidence import LLAMA_SERVER, RPC_SERVER, BackendSeen, Inputs
from harness.diagnosis.node_conditions import STOPPED_STATES
from harness.errors import HarnessError
from harness.monitor.backend_state import RPC_UNIT
from harness.settings import NODE_LLAMA_CPP, NODE_RPC_CACHE, RPC_PORT

_LINES = 2000
_LOOK_S = 3.1
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


async def diagnose_units(nodes: Sequence[Node], unit: str) -> list[UnitDiagnosis]:
    """Diagnose a unit on each of these nodes; the nodes are compared with each other.

    Raises:
        HarnessError: no node has the unit, or the only node cannot be reached.
    """
    name = unit if "." in unit else f"{unit}.service"
    answers = await asyncio.gather(*(_ask(node, name) for node in nodes), return_exceptions=True)
    seen: dict[str, dict[str, Any]] = {}
    for node, answer in zip(nodes, answers, strict=True):
        if isinstance(answer, HarnessError):
            if len(nodes) == 1:
                raise answer
        elif isinstance(answer, BaseException):
            raise answer
        elif answer["properties"].get("LoadState") == "loaded":
            seen[node.name] = answer
    if not seen:
        raise HarnessError(f"no unit {name} on {', '.join(node.name for node in nodes)}")
    builds = {node: answer["build"] for node, answer in seen.items() if answer["build"]}
    return [
        UnitDiagnosis(
            node, name, _state(answer["properties"]), classify(unit_inputs(node, name, answer, builds))
        )
        for node, answer in seen.items()
    ]


async def _ask(node: Node, unit: str) -> dict[str, Any]:
    argument = {
        "unit": unit,
        "lines": _LINES,
        "port": int(node.variables.get("rpc_server_port", RPC_PORT)),
        "cache": str(NODE_RPC_CACHE),
        "llama_cpp": str(NODE_LLAMA_CPP),
        "look_s": _LOOK_S,
    }
    found: dict[str, Any] = await run_script(node, "unit.py", argument, root=True)
    return found


def unit_inputs(node: str, unit: str, answer: Mapping[str, Any], builds: Mapping[str, str]) -> Inputs:
    """What one node's answer says of its unit: of the process that runs, or of the last that ended."""
    properties, process = answer["properties"], answer["process"]
    is_backend = unit == RPC_UNIT
    lines, ended = last_end(answer["journal"])
    restarted = properties.get("NRestarts", "0") != "0"
    running = properties.get("ActiveState") == "active" and not (restarted and ended)
    seen = BackendSeen(peer=answer["peer"], **process)
    stalled = is_backend and seen.peer is not None and seen.state in STOPPED_STATES
    running = running or stalled
    full = answer["full_disk"] if is_backend else None
    return Inputs(
        process=RPC_SERVER if is_backend else LLAMA_SERVER,
        node=node,
        running=running,
        waiting=stalled,
        exit=None if running else ended,
        logs={f"journal {node}": answer["journal"] if running else lines},
        journal={node: answer["kernel"] if running else during(answer["kernel"], lines)},
        unit={} if running else properties,
        builds=builds if is_backend else {},
        backends={node: seen} if is_backend else {},
        full_disks={node: full} if full else {},
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
    return lines, exits.from_journal(journal[last]) or _clean_end(lines)


def _clean_end(lines: Sequence[str]) -> ExitStatus:
    """The end of a process that systemd calls clean: it was told to stop, or exited with 0.

    rpc-server exits with 0 on fatal start errors too.
    """
    told = any(_STOPPING in line for line in lines)
    return ExitStatus(time_ns=0, signal=int(exits.TERM)) if told else ExitStatus(time_ns=0, code=0)


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
