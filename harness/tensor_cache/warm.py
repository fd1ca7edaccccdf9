"""``harness warm``: fills the backends' tensor caches with what a plan puts there, before the first load."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from harness.cluster.inventory import Inventory, Node
from harness.cluster.ssh import run_as, run_script
from harness.common.text import last_line
from harness.contracts.plan import LoadRequest, Offer
from harness.errors import HarnessError
from harness.models import resolve_model
from harness.router_client.client import RouterClient
from harness.settings import NODE_MODELS
from harness.tensor_cache.client import (
    OWNER,
    TOOL,
    CacheLine,
    list_cache,
    parse_tool,
    reader,
    run_cache_tool,
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
    load: LoadRequest,
    say: Callable[[str], None],
    *,
    push: bool = False,
) -> tuple[Offer, list[Warmed]]:
    """Fill the caches for a load, on all nodes at once.

    A node whose rpc-server's user may read a copy of the model's file (a shared disk, Ollama's folder) takes
    it from there; any other receives what it lacks, each tensor once, from this machine's copy or, where
    there is none, from the head node's.

    Args:
        load: the load to prepare.
        say: called with a line for each node that is done.
        push: send tensors even to nodes that have the file.

    Raises:
        HarnessError: the model does not fit, a node cannot be reached, or a tensor could not be written.
    """
    offer = await router.plan(load, keep=True)
    if not offer.tensors:
        raise HarnessError(
            f"{load.model} has no tensor over 10 MiB on the backends: a cache would keep nothing"
        )
    filler = _Filler(inventory, offer, push, _local_copy(load.model, offer.plan.file_bytes))
    results = await asyncio.gather(*(filler.fill(inventory.node(name), say) for name in offer.tensors))
    return offer, list(results)


class _Filler:
    def __init__(self, inventory: Inventory, offer: Offer, push: bool, local: Path | None = None) -> None:
        self._head = inventory.head
        self._offer = offer
        self._push_always = push
        self._fingerprint_lock = asyncio.Lock()
        self._fingerprint: str | None = None
        self._local = local

    async def fill(self, node: Node, say: Callable[[str], None]) -> Warmed:
        ranges, started = self._offer.tensors[node.name], time.monotonic()
        own = None if self._push_always and node != self._head else await self._copy_on(node)
        if own is not None:
            to = (str(node.rpc_cache), OWNER)
            tensors = await tensor_cache(node, run_as(OWNER), "fill", own, *to, stdin=_lines(ranges))
            source = "copy"
        else:
            tensors, source = await self._push_missing(node, ranges)
        await run_cache_tool(node, "need", stdin="\n".join(tensor.name for tensor in tensors))
        written = sum(tensor.size for tensor in tensors if tensor.word == "written")
        seconds = time.monotonic() - started
        total = sum(tensor.size for tensor in tensors)
        say(
            f"{node.name}: {len(tensors)} tensors, {written / 1e6:,.0f} MB written ({source}), "
            f"{seconds:.1f} s"
        )
        return Warmed(node.name, source, len(tensors), total, written, seconds)

    async def _copy_on(self, node: Node) -> str | None:
        """Path of the node's own copy of the model; None where it has none that is the same."""
        path = PurePosixPath(self._offer.plan.model_path)
        folders = [str(path.parent), str(NODE_MODELS), *_OLLAMA_BLOBS]
        paths = list(dict.fromkeys(f"{folder}/{path.name}" for folder in folders))
        copy = await self._fingerprint_of(node, run_as(OWNER), paths)
        if copy is None:
            return None
        return copy["path"] if copy["fingerprint"] == await self._expected_fingerprint() else None

    async def _expected_fingerprint(self) -> str:
        async with self._fingerprint_lock:
            if self._fingerprint is None:
                path = self._offer.plan.model_path
                original = await self._fingerprint_of(self._head, reader(self._head), [path])
                if original is None:
                    raise HarnessError(f"{self._head.name}: {path} is not there any more")
                self._fingerprint = original["fingerprint"]
            return self._fingerprint

    async def _fingerprint_of(
        self, node: Node, user: Sequence[str], paths: list[str]
    ) -> dict[str, str] | None:
        """Path and fingerprint of the first of these that is a file of the model's size the user may read."""
        argument = {"do": "fingerprint", "paths": paths, "size": self._offer.plan.file_bytes}
        copy: dict[str, str] | None = await run_script(node, "model_file.py", argument, root=True, user=user)
        return copy

    async def _push_missing(self, node: Node, ranges: Ranges) -> tuple[list[CacheLine], str]:
        """Send what the node's cache lacks, by the hashes that the head node computes."""
        path = self._offer.plan.model_path
        user = reader(self._head)
        hashed = await tensor_cache(self._head, user, "hash", path, stdin=_lines(ranges))
        cached = await list_cache(node)
        missing = {line.offset for line in hashed if cached.get(line.name) != line.size}
        present = [replace(line, word="present") for line in hashed if line.offset not in missing]
        if not missing:
            return present, "none"
        wanted = [(offset, size) for offset, size in ranges if offset in missing]
        return present + await self._send(node, wanted), "pushed"

    async def _send(self, node: Node, ranges: Ranges) -> list[CacheLine]:
        """Stream tensors from a copy of the file into the node's cache, through one pipe."""
        if self._local:
            source = [sys.executable, "-m", "harness.tensor_cache.ranges", str(self._local)]
        else:
            user = reader(self._head)
            source = self._head.ssh(*user, TOOL, "read", self._offer.plan.model_path, root=True)
        sink = node.ssh(*run_as(OWNER), TOOL, "store", str(node.rpc_cache), OWNER, root=True)
        reading, writing = os.pipe()
        pipe = asyncio.subprocess.PIPE
        async with contextlib.AsyncExitStack() as processes:
            try:
                sender = await asyncio.create_subprocess_exec(
                    *source, stdin=pipe, stdout=writing, stderr=pipe
                )
                processes.push_async_callback(_end, sender)
                receiver = await asyncio.create_subprocess_exec(
                    *sink, stdin=reading, stdout=pipe, stderr=pipe
                )
                processes.push_async_callback(_end, receiver)
            finally:
                os.close(reading)
                os.close(writing)
            sent, received = await asyncio.gather(
                sender.communicate(_lines(ranges).encode()), receiver.communicate()
            )
        for name, process, (_, errors) in (("sending", sender, sent), ("storing", receiver, received)):
            if process.returncode:
                raise HarnessError(f"{node.name}: {name} tensors failed: {last_line(errors)}")
        return parse_tool(received[0].decode())


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


def _local_copy(name: str, size: int) -> Path | None:
    """This machine's copy of the model, if its size is the same; by the name that the user gave."""
    try:
        model = resolve_model(name).gguf
    except HarnessError:
        return None
    return model.path if model.file_bytes == size else None


def _lines(ranges: Ranges) -> str:
    return "".join(f"{offset} {size}\n" for offset, size in ranges)
