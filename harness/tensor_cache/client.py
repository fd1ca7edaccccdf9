"""The tensor caches of the backends: what is in them, whether it is whole, and pruning them."""

import asyncio
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.cluster.inventory import Node
from harness.cluster.ssh import Completed, run_on
from harness.errors import HarnessError
from harness.settings import NODE_LLAMA_CPP, NODE_RPC_CACHE

TOOL = str(NODE_LLAMA_CPP / "current" / "bin" / "llama-tensor-cache")
KEEPER = "/usr/local/lib/llama-rpc-server/rpc_cache.py"
OWNER = "llama-rpc"
_SLOW_S = 3600.0
_LIST = 'for f in "$1"/*; do [ -f "$f" ] && stat -c "%n %s" "$f"; done; true'


@dataclass(frozen=True)
class CacheEntry:
    """One cached tensor."""

    name: str
    """FNV-1a-64 hash of its bytes, 16 hex digits."""
    size: int


def cache_folder(node: Node) -> Path:
    """Where the node's rpc-server keeps tensors."""
    base = node.variables.get("rpc_server_cache_dir")
    return Path(str(base)) / "rpc" if base else NODE_RPC_CACHE


async def list_cache(node: Node) -> list[CacheEntry]:
    """What the node's cache holds.

    Raises:
        HarnessError: the node cannot be reached.
    """
    done = await run_on(node, "sh", "-c", _LIST, "sh", str(cache_folder(node)), root=True)
    found = []
    for line in done.stdout.splitlines():
        name, _, size = line.rpartition(" ")
        stem = name.rpartition("/")[2]
        if len(stem) == 16:
            found.append(CacheEntry(stem, int(size)))
    return found


@dataclass(frozen=True)
class CacheStatus:
    """A cache at a glance. Sizes in bytes."""

    node: str
    folder: str
    tensors: int
    size: int
    needed: int
    """Tensors that the plan of the last ``harness warm`` needs there."""
    needed_there: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


async def cache_status(node: Node) -> CacheStatus:
    """What the node's cache holds, beside what the current plan needs.

    Raises:
        HarnessError: the node cannot be reached.
    """
    folder = cache_folder(node)
    entries, listed = await asyncio.gather(
        list_cache(node), run_on(node, "cat", str(folder.parent / "needed.json"), root=True)
    )
    needed = set(json.loads(listed.stdout)) if listed.code == 0 else set()
    there = needed & {entry.name for entry in entries}
    size = sum(entry.size for entry in entries)
    return CacheStatus(node.name, str(folder), len(entries), size, len(needed), len(there))


async def keep_house(node: Node, verb: str, *arguments: str, stdin: str = "") -> str:
    """Run rpc_cache.py on the node as the cache's owner; what it printed.

    Raises:
        HarnessError: the node cannot be reached, or it failed.
    """
    folder = str(cache_folder(node).parent)
    command = ("runuser", "-u", OWNER, "--", KEEPER, verb, folder, *arguments)
    return checked(node, await run_on(node, *command, stdin=stdin, deadline_s=_SLOW_S, root=True)).stdout


@dataclass(frozen=True)
class Told:
    """What llama-tensor-cache said of one tensor."""

    name: str
    size: int
    word: str
    """``hashed``, ``present``, ``written``, ``ok`` or ``bad``."""
    offset: int
    """In the model's file; 0 where it came from no file."""


async def tensor_cache(node: Node, *arguments: str, stdin: str = "") -> list[Told]:
    """Run llama-tensor-cache on the node as root.

    Raises:
        HarnessError: the node cannot be reached, the build has no such program, or it failed.
    """
    done = await run_on(node, TOOL, *arguments, stdin=stdin, deadline_s=_SLOW_S, root=True)
    return parse_tool(checked(node, done).stdout)


def parse_tool(text: str) -> list[Told]:
    """Lines of llama-tensor-cache."""
    fields = (line.split() for line in text.splitlines())
    return [Told(name, int(size), word, int(offset)) for name, size, word, offset in fields]


def checked(node: Node, done: Completed) -> Completed:
    """``done``, if it ended well.

    Raises:
        HarnessError: it did not; with its last words.
    """
    if done.code == 127 or "No such file or directory" in done.stderr:
        raise HarnessError(f"{node.name}: {done.stderr.strip()}; deploy again (harness deploy)")
    if done.code != 0:
        last = ((done.stderr or done.stdout).strip().splitlines() or ["no message"])[-1]
        raise HarnessError(f"{node.name}: {last}")
    return done


async def verify_caches(nodes: list[Node]) -> dict[str, str]:
    """Hash every cached tensor and drop the bad ones; what was said, by node."""
    said = await asyncio.gather(*(keep_house(node, "verify", "--tool", TOOL) for node in nodes))
    return {node.name: text.strip() for node, text in zip(nodes, said, strict=True)}


async def prune_caches(nodes: list[Node], cap_bytes: int) -> dict[str, str]:
    """Bring the caches below a cap, without what the current plan needs; what was said, by node."""
    said = await asyncio.gather(*(keep_house(node, "prune", "--max", str(cap_bytes)) for node in nodes))
    return {node.name: text.strip() for node, text in zip(nodes, said, strict=True)}
