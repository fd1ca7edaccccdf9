"""Files that are not what they should be: a model cut short, a cache on a disk that is too small."""

import asyncio
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from harness.contracts.diagnosis import FailureClass
from harness.lab import disk
from harness.lab.spec import LabSpec
from harness.monitor.backend_state import RPC_UNIT
from harness.settings import NODE_RPC_CACHE
from harness.trials.faults.fault import Fault, on, serve_again

CACHE = NODE_RPC_CACHE.parent
IMAGE = "/var/lib/llama-harness/fault-cache.img"

_MOUNT = """
set -e
truncate --size "$2" "$1"
mkfs.ext4 -q -F -m 0 "$1"
mount -o loop "$1" "$3"
chown llama-rpc:llama-rpc "$3"
chmod 750 "$3"
"""
_UMOUNT = 'while mountpoint -q "$2"; do umount "$2" || exit 1; done; rm -f "$1"'


@dataclass
class TruncatedModel(Fault):
    """A copy of a model's first bytes, beside it, under a name of its own."""

    kind = "truncated-model"
    expected = FailureClass.MODEL_INVALID

    path: str
    """The whole model on the head node."""
    kept_bytes: int
    lab: LabSpec | None = None

    @property
    def model(self) -> str:
        """The name by which the router knows the copy."""
        return PurePosixPath(self.path).stem + "-truncated"

    async def inject(self) -> str:
        source, target = PurePosixPath(self.path), PurePosixPath(self.path).with_stem(self.model)
        if self.lab is not None:
            # One folder, read-only on the machines, serves them all.
            whole = self.lab.models / source.name
            with whole.open("rb") as file:
                self.lab.models.joinpath(target.name).write_bytes(file.read(self.kept_bytes))
        else:
            cut = 'head -c "$1" "$2" >"$3"'
            await on(self.node, "sh", "-c", cut, "sh", str(self.kept_bytes), str(source), str(target))
        return f"{target.name} holds the first {self.kept_bytes} bytes of {source.name}"

    async def undo(self) -> None:
        target = PurePosixPath(self.path).with_stem(self.model)
        if self.lab is not None:
            self.lab.models.joinpath(target.name).unlink(missing_ok=True)
        else:
            await on(self.node, "rm", "-f", str(target))


@dataclass
class SmallCacheDisk(Fault):
    """rpc-server's tensor cache on a file system of its own that a model does not fit."""

    kind = "small-cache-disk"
    expected = FailureClass.DISK_FULL

    size_bytes: int = 64 << 20
    lab: LabSpec | None = None
    began: bool = field(default=False, init=False)

    async def inject(self) -> str:
        await on(self.node, "systemctl", "stop", RPC_UNIT)
        self.began = True
        if self.lab is not None:
            owner = await on(self.node, "sh", "-c", "id -u llama-rpc; id -g llama-rpc")
            user, group = (int(word) for word in owner.split())
            await asyncio.to_thread(
                disk.attach, self.lab, self.node.name, CACHE, self.size_bytes, owner=(user, group)
            )
        else:
            size = str(self.size_bytes)
            await on(self.node, "sh", "-s", "--", IMAGE, size, str(CACHE), stdin=_MOUNT)
        await serve_again(self.node)
        return f"{CACHE} on a disk of {self.size_bytes / 2**20:.0f} MiB"

    async def undo(self) -> None:
        if not self.began:
            return
        await on(self.node, "systemctl", "stop", RPC_UNIT)
        if self.lab is not None:
            await asyncio.to_thread(disk.detach, self.lab, self.node.name, CACHE)
        else:
            await on(self.node, "sh", "-s", "--", IMAGE, str(CACHE), stdin=_UMOUNT)
        await serve_again(self.node)
