"""``harness warm``: the backends' tensor caches filled with what a plan puts there, before the first load."""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from harness.cluster.inventory import Inventory, Node
from harness.cluster.ssh import run_script
from harness.contracts.plan_offer import Offer
from harness.errors import HarnessError
from harness.models.resolve import resolve_model
from harness.router_client.client import LoadRequest, RouterClient
from harness.settings import NODE_MODELS
from harness.tensor_cache.client import (
    OWNER,
    TOOL,
    Told,
    cache_folder,
    keep_house,
    list_cache,
    parse_tool,
    tensor_cache,
)

_OLLAMA_BLOBS = ("/usr/share/ollama/.ollama/models/blobs", "/var/lib/ollama/models/blobs")

Ranges = list[tuple[int, int]]
"""Offset and size of tensors in the model's file."""


@dataclass(frozen=True)
class Warmed:
    """What was done on one node."""

    node: str
    source: str
    """``copy``: the node's own copy of the file; ``pushed``: sent there; ``none``: everything was there."""
    tensors: int
    size: int
    written: int
    """Bytes that were not there before."""
    seconds: float


async def warm(
    inventory: Inventory,
    router: RouterClient,
    asked: LoadRequest,
    say: Callable[[str], None],
    *,
    push: bool = False,
) -> tuple[Offer, list[Warmed]]:
    """Fill the caches for a load, on all nodes at once.

    A node that has the model's file (a shared disk, its own Ollama) reads it; any other is sent what it
    lacks, each tensor once, from this machine's copy or, where there is none, from the head node's.

    Args:
        asked: the load that is to come.
        push: send tensors even to nodes that have the file.

    Raises:
        HarnessError: the model does not fit, a node cannot be reached, or a tensor could not be written.
    """
    offer = await router.plan(asked, keep=True)
    if not offer.tensors:
        raise HarnessError(
            f"{asked.model} has no tensor over 10 MiB on the backends: there is nothing a cache would keep"
        )
    filler = _Filler(inventory, offer, push)
    done = await asyncio.gather(*(filler.fill(inventory.node(name), say) for name in offer.tensors))
    return offer, list(done)


class _Filler:
    def __init__(self, inventory: Inventory, offer: Offer, push: bool) -> None:
        self._head = inventory.head
        self._offer = offer
        self._push = push
        self._original = asyncio.Lock()
        self._fingerprint: str | None = None
        self._local = _local_copy(offer)

    async def fill(self, node: Node, say: Callable[[str], None]) -> Warmed:
        ranges, started = self._offer.tensors[node.name], time.monotonic()
        own = None if self._push and node != self._head else await self._copy_on(node)
        if own is not None:
            folder = str(cache_folder(node))
            told = await tensor_cache(node, "fill", own, folder, OWNER, stdin=_lines(ranges))
            source = "copy"
        else:
            told, source = await self._pushed(node, ranges)
        await keep_house(node, "need", stdin="\n".join(one.name for one in told))
        written = sum(one.size for one in told if one.word == "written")
        seconds = time.monotonic() - started
        total = sum(one.size for one in told)
        say(f"{node.name}: {len(told)} tensors, {written / 1e6:,.0f} MB written ({source}), {seconds:.1f} s")
        return Warmed(node.name, source, len(told), total, written, seconds)

    async def _copy_on(self, node: Node) -> str | None:
        """Path of the node's own copy of the model; None where it has none that is the same."""
        path = PurePosixPath(self._offer.plan.model_path)
        folders = [str(path.parent), str(NODE_MODELS), *_OLLAMA_BLOBS]
        paths = list(dict.fromkeys(f"{folder}/{path.name}" for folder in folders))
        argument = {"paths": paths, "size": self._offer.plan.file_bytes}
        found = await run_script(node, "fingerprint.py", argument, root=True)
        if found is None:
            return None
        return str(found["path"]) if found["fingerprint"] == await self._expected() else None

    async def _expected(self) -> str:
        async with self._original:
            if self._fingerprint is None:
                plan = self._offer.plan
                argument = {"paths": [plan.model_path], "size": plan.file_bytes}
                found = await run_script(self._head, "fingerprint.py", argument, root=True)
                if found is None:
                    raise HarnessError(f"{self._head.name}: {plan.model_path} is not there any more")
                self._fingerprint = str(found["fingerprint"])
            return self._fingerprint

    async def _pushed(self, node: Node, ranges: Ranges) -> tuple[list[Told], str]:
        """Send what is not there yet, by its hash on the head node."""
        path = self._offer.plan.model_path
        hashed = await tensor_cache(self._head, "hash", path, stdin=_lines(ranges))
        there = {(entry.name, entry.size) for entry in await list_cache(node)}
        missing = {one.offset for one in hashed if (one.name, one.size) not in there}
        present = [replace(one, word="present") for one in hashed if one.offset not in missing]
        if not missing:
            return present, "none"
        return present + await self._send(node, [one for one in ranges if one[0] in missing]), "pushed"

    async def _send(self, node: Node, ranges: Ranges) -> list[Told]:
        """Stream tensors from a copy of the file into the node's cache, through one pipe."""
        if self._local:
            source = [sys.executable, "-m", "harness.tensor_cache.ranges", str(self._local)]
        else:
            source = self._head.ssh(TOOL, "read", self._offer.plan.model_path, root=True)
        sink = node.ssh(TOOL, "store", str(cache_folder(node)), OWNER, root=True)
        reading, writing = os.pipe()
        pipe = asyncio.subprocess.PIPE
        try:
            sender = await asyncio.create_subprocess_exec(*source, stdin=pipe, stdout=writing, stderr=pipe)
            receiver = await asyncio.create_subprocess_exec(*sink, stdin=reading, stdout=pipe, stderr=pipe)
        finally:
            os.close(reading)
            os.close(writing)
        sent, received = await asyncio.gather(
            sender.communicate(_lines(ranges).encode()), receiver.communicate()
        )
        for name, process, (_, errors) in (("sending", sender, sent), ("storing", receiver, received)):
            if process.returncode:
                last = (errors.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
                raise HarnessError(f"{node.name}: {name} tensors failed: {last}")
        return parse_tool(received[0].decode())


def _local_copy(offer: Offer) -> Path | None:
    """This machine's copy of the model, if its size is the same."""
    try:
        found = resolve_model(offer.plan.model).gguf
    except HarnessError:
        return None
    return found.path if found.file_bytes == offer.plan.file_bytes else None


def _lines(ranges: Ranges) -> str:
    return "".join(f"{offset} {size}\n" for offset, size in ranges)
