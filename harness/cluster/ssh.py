"""What trials do on a node over SSH: read its facts, make its caches cold, fetch its journal."""

import asyncio
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.cluster.inventory import Node
from harness.contracts.run_records import NodeFacts
from harness.errors import HarnessError
from harness.settings import NODE_LLAMA_CPP, NODE_RPC_CACHE

REMOTE = Path(__file__).with_name("remote")
_IMPORTS_COMMON = re.compile(r"^from harness\.cluster\.remote\.common import .*\n", re.MULTILINE)
_FUTURE = "from __future__ import annotations\n"
UNITS = ("llama-rpc-server", "llama-node-monitor", "llama-pool-server", "llama-router")


@dataclass(frozen=True)
class Completed:
    """A command that ended on a node."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class NodeState:
    """A node's facts, and how far its clock is from ours."""

    facts: NodeFacts
    clock_offset_ns: int
    """Node's clock minus ours; positive where the node is ahead."""
    clock_error_ns: int
    """Half of the round trip: the offset is known no better than this."""


async def run_on(
    node: Node, *argv: str, stdin: str = "", deadline_s: float = 30, root: bool = False
) -> Completed:
    """Run a command on a node over SSH, with ``root`` as the superuser.

    Raises:
        HarnessError: the node cannot be reached, or the command did not end in time.
    """
    process = await asyncio.create_subprocess_exec(
        *node.ssh(*argv, root=root),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(deadline_s):
            stdout, stderr = await process.communicate(stdin.encode())
    except TimeoutError:
        raise HarnessError(
            f"{node.name} ({node.address}): '{argv[0]}' did not end within {deadline_s:.0f} s over SSH"
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    done = Completed(
        process.returncode or 0, stdout.decode(errors="replace"), stderr.decode(errors="replace")
    )
    if done.code == 255:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HarnessError(
            f"{node.name} ({node.address}) cannot be reached over SSH: {last}; see that it is up "
            "and that the inventory's user and key are right"
        )
    return done


def source_of(script: str) -> str:
    """Text of a script in ``remote/``, what it imports of the folder's ``common.py`` before it."""
    text = (REMOTE / script).read_text()
    if not _IMPORTS_COMMON.search(text):
        return text
    return (REMOTE / "common.py").read_text() + _IMPORTS_COMMON.sub("", text.replace(_FUTURE, ""))


async def run_script(
    node: Node, script: str, argument: dict[str, Any], deadline_s: float = 60, root: bool = False
) -> Any:
    """Run one of the scripts in ``remote/`` with the node's own Python; it prints JSON.

    Raises:
        HarnessError: the node cannot be reached or the script failed.
    """
    source = source_of(script)
    argv = ("python3", "-", json.dumps(argument))
    done = await run_on(node, *argv, stdin=source, deadline_s=deadline_s, root=root)
    if done.code != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HarnessError(f"{node.name} ({node.address}): {script} failed: {last}")
    return json.loads(done.stdout)


async def read_state(node: Node) -> NodeState:
    """Facts of one node as they are now."""
    argument = {"llama_cpp": str(NODE_LLAMA_CPP), "units": [f"{unit}.service" for unit in UNITS]}
    before = time.time_ns()
    raw = await run_script(node, "facts.py", argument)
    after = time.time_ns()
    node_ns = raw.pop("time_ns")
    facts = NodeFacts(name=node.name, address=node.address, groups=sorted(node.groups), **raw)
    # The script reads its clock last, so the true moment lies near the answer's arrival.
    return NodeState(facts, clock_offset_ns=node_ns - after, clock_error_ns=after - before)


async def with_surroundings(node: Node, facts: NodeFacts) -> NodeFacts:
    """The facts, with the settings and exposure of the node's units and the rate of its link.

    A look of its own, for it takes about a second: the clock's offset is known no better than a look is long.
    """
    argument = {"units": sorted(facts.units), "address": node.address}
    raw = await run_script(node, "surroundings.py", argument)
    settings: dict[str, dict[str, str]] = raw.pop("settings")
    units = {name: properties | settings.get(name, {}) for name, properties in facts.units.items()}
    return facts.model_copy(update=raw | {"units": units})


async def make_cold(backends: list[Node], head: Node, model_path: str) -> dict[str, Any]:
    """Empty the RPC caches and drop the model from the page cache. Only with no coordinator attached.

    Returns:
        Per node, what was removed and how many bytes of the model stayed resident.
    """
    nodes = {node.name: node for node in [*backends, head]}
    arguments = {
        name: {
            "rpc_cache": str(NODE_RPC_CACHE) if node in backends else None,
            "drop": [model_path] if node is head or node.name == head.name else [],
        }
        for name, node in nodes.items()
    }
    answers = await asyncio.gather(
        *(
            run_script(node, "make_cold.py", arguments[name], deadline_s=120, root=True)
            for name, node in nodes.items()
        )
    )
    return dict(zip(nodes, answers, strict=True))


async def read_journal(node: Node, unit: str, since_ns: int) -> str:
    """Journal of one unit since a moment (UTC, nanoseconds)."""
    return await _journalctl(node, since_ns, "-u", unit)


async def read_kernel_log(node: Node, since_ns: int) -> str:
    """The kernel's own lines since a moment (UTC, nanoseconds); a lab node's journal has none."""
    return await _journalctl(node, since_ns, "--dmesg")


async def _journalctl(node: Node, since_ns: int, *selection: str) -> str:
    shown = ("--since", f"@{since_ns // 10**9}", "-o", "short-iso-precise", "--no-pager")
    return (await run_on(node, "journalctl", *selection, *shown, deadline_s=60, root=True)).stdout
