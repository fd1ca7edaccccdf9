"""The tensor caches of the backends: their content, whether it is whole, pruning and emptying them."""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.cluster.inventory import Node
from harness.cluster.ssh import run_as, run_on, run_script
from harness.common.text import last_line
from harness.errors import HarnessError
from harness.settings import NODE_LLAMA_CPP

TOOL = str(NODE_LLAMA_CPP / "current" / "bin" / "llama-tensor-cache")
CACHE_TOOL = "/usr/local/lib/llama-rpc-server/rpc_cache.py"
OWNER = "llama-rpc"
"""The service that owns a cache: what is in it is worked on with its rights."""
_ROUTER = "llama-router"
_SLOW_S = 3600.0
_LISTED = re.compile(r"^.*/([0-9a-f]{16}) (\d+)$", re.MULTILINE)
_LIST = 'for f in "$1"/*; do [ -f "$f" ] && stat -c "%n %s" "$f"; done; true'


async def list_cache(node: Node) -> dict[str, int]:
    """Sizes of the tensors in the node's cache, by FNV-1a-64 hash of their bytes (16 hex digits)."""
    done = await run_on(node, *run_as(OWNER), "sh", "-c", _LIST, "sh", str(node.rpc_cache), root=True)
    return {name: int(size) for name, size in _LISTED.findall(done.stdout)}


def reader(head: Node) -> tuple[str, ...]:
    """Words before a command that reads, as the router's user, what the router names as a model."""
    group = str(head.variables.get("router_ollama_group", "ollama"))
    return run_as(_ROUTER, group if head.variables.get("router_ollama_models") else None)


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


async def cache_status(node: Node) -> CacheStatus:
    """Content of the node's cache, and the part of it that the plan of the last ``harness warm`` needs."""
    folder = node.rpc_cache
    sizes, listed = await asyncio.gather(
        list_cache(node), run_on(node, *run_as(OWNER), "cat", str(folder.parent / "needed.json"), root=True)
    )
    try:
        needed = {str(name) for name in json.loads(listed.stdout or "[]")}
    except (ValueError, TypeError, RecursionError):
        raise HarnessError(
            f"{node.name}: {folder.parent}/needed.json is damaged; run `harness warm`"
        ) from None
    total = sum(sizes.values())
    return CacheStatus(node.name, str(folder), len(sizes), total, len(needed), len(needed & sizes.keys()))


async def run_cache_tool(node: Node, verb: str, *arguments: str, stdin: str = "") -> str:
    """Run rpc_cache.py on the node as the cache's owner; what it printed."""
    folder = str(node.rpc_cache.parent)
    return await _run(node, *run_as(OWNER), CACHE_TOOL, verb, folder, *arguments, stdin=stdin)


@dataclass(frozen=True)
class CacheLine:
    """What llama-tensor-cache printed of one tensor."""

    name: str
    size: int
    word: str
    """``hashed``, ``present``, ``written``, ``ok`` or ``bad``."""
    offset: int
    """In the model's file; 0 where it came from no file."""


async def tensor_cache(node: Node, user: Sequence[str], *arguments: str, stdin: str = "") -> list[CacheLine]:
    """Run llama-tensor-cache on the node as a service's user."""
    return parse_tool(await _run(node, *user, TOOL, *arguments, stdin=stdin))


def parse_tool(text: str) -> list[CacheLine]:
    """Lines of llama-tensor-cache."""
    fields = (line.split() for line in text.splitlines())
    return [CacheLine(name, int(size), word, int(offset)) for name, size, word, offset in fields]


async def _run(node: Node, *command: str, stdin: str) -> str:
    """Standard output of a command that may take long, as root.

    Raises:
        HarnessError: the node cannot be reached, the build has no such program, or it failed.
    """
    result = await run_on(node, *command, stdin=stdin, deadline_s=_SLOW_S, root=True)
    if result.returncode == 127 or "No such file or directory" in result.stderr:
        raise HarnessError(f"{node.name}: {result.stderr.strip()}; deploy again (harness deploy)")
    if result.returncode != 0:
        raise HarnessError(f"{node.name}: {last_line(result.stderr or result.stdout)}")
    return result.stdout


async def verify_caches(nodes: list[Node]) -> dict[str, str]:
    """Hash every cached tensor and drop the bad ones; what the tool printed, by node."""
    return await _run_everywhere(nodes, "verify", "--tool", TOOL)


async def prune_caches(nodes: list[Node], cap_bytes: int) -> dict[str, str]:
    """Bring the caches below a cap, without what the current plan needs; what the tool printed, by node."""
    return await _run_everywhere(nodes, "prune", "--max", str(cap_bytes))


async def _run_everywhere(nodes: list[Node], verb: str, *arguments: str) -> dict[str, str]:
    texts = await asyncio.gather(*(run_cache_tool(node, verb, *arguments) for node in nodes))
    return {node.name: text.strip() for node, text in zip(nodes, texts, strict=True)}


async def make_cold(backends: list[Node], head: Node, model_path: str) -> dict[str, Any]:
    """Empty the tensor caches and drop the model from the page cache. Only with no coordinator attached.

    The caches are emptied as their owner, and the model is opened as the router's user.

    Returns:
        Per node, what was removed and how many bytes of the model stayed resident.
    """

    async def empty(node: Node) -> dict[str, Any]:
        argument = {"do": "empty", "folder": str(node.rpc_cache)}
        removed = await run_script(
            node, "model_file.py", argument, deadline_s=120, root=True, user=run_as(OWNER)
        )
        return {"rpc_cache_removed": removed, "resident_before": {}, "resident_after": {}}

    async def drop() -> dict[str, Any]:
        argument = {"do": "drop_pages", "path": model_path, "user": reader(head)}
        dropped: dict[str, Any] = await run_script(head, "model_file.py", argument, deadline_s=120, root=True)
        return dropped

    dropped, *emptied = await asyncio.gather(drop(), *map(empty, backends))
    done = {node.name: one for node, one in zip(backends, emptied, strict=True)}
    done[head.name] = done.get(head.name, {}) | dropped
    return done
