"""Memory and disk space reduced: of the whole machine in a lab, from the backend's unit elsewhere."""

import asyncio
from dataclasses import dataclass, field

from harness.contracts.diagnosis import FailureClass
from harness.errors import HarnessError
from harness.lab import running
from harness.lab.cgroup import Groups
from harness.lab.spec import LabSpec
from harness.monitor.backend_state import RPC_UNIT
from harness.settings import NODE_RPC_CACHE
from harness.trials.faults.fault import Fault, ensure_serving, run_as_root
from harness.trials.lab import limit_memory, restore_memory

_TRIES = 5
_AT_ONCE_S = 1
_PROPERTIES = ("MemoryMax", "MemorySwapMax")


@dataclass
class SqueezeMemory(Fault):
    """Little memory is left and no swap: what is loaded next has the kernel kill a process."""

    kind = "squeeze-memory"
    expected = FailureClass.OOM_KILLED

    headroom_bytes: int = 32 << 20
    """Bytes that may be used in addition to those in use now."""
    lab: LabSpec | None = None
    before: dict[str, str] = field(default_factory=dict, init=False)

    async def inject(self) -> str:
        if self.lab is not None:
            limit = await asyncio.to_thread(_hold, self.lab, self.node.name, self.headroom_bytes)
            return f"machine {self.node.name} held to {limit / 2**20:.0f} MiB, no swap"
        return await self._hold_unit()

    async def _hold_unit(self) -> str:
        wanted = ",".join(("MemoryCurrent", *_PROPERTIES))
        output = await run_as_root(self.node, "systemctl", "show", f"--property={wanted}", RPC_UNIT)
        values = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
        if not values.get("MemoryCurrent", "").isdigit():
            raise HarnessError(
                f"{self.node.name}: systemd does not count its units' memory; that needs cgroup version 2"
            )
        limit = int(values["MemoryCurrent"]) + self.headroom_bytes
        self.before = {name: values[name] for name in _PROPERTIES if name in values}
        await self._set({"MemoryMax": str(limit), "MemorySwapMax": "0"})
        return f"{RPC_UNIT} on {self.node.name} held to {limit / 2**20:.0f} MiB, no swap"

    async def _set(self, values: dict[str, str]) -> None:
        words = [f"{name}={value}" for name, value in values.items()]
        await run_as_root(self.node, "systemctl", "set-property", "--runtime", RPC_UNIT, *words)

    async def undo(self) -> None:
        if self.lab is not None:
            await asyncio.to_thread(restore_memory, self.lab, self.node.name)
        elif self.before:
            await self._set(self.before)
        await ensure_serving(self.node)


@dataclass
class StarveIntoSwap(Fault):
    """The machine is held to less than what is loaded on it: the rest goes to swap. In a lab alone."""

    kind = "starve-into-swap"
    expected = FailureClass.SWAP_THRASH

    memory_bytes: int
    lab: LabSpec | None = None

    async def inject(self) -> str:
        if self.lab is None:
            raise HarnessError(
                f"{self.node.name}: only a lab's machine can be starved; give it a bigger model"
            )
        await asyncio.to_thread(limit_memory, self.lab, self.node.name, self.memory_bytes)
        return f"machine {self.node.name} held to {self.memory_bytes / 2**20:.0f} MiB, swap beside it"

    async def undo(self) -> None:
        if self.lab is not None:
            await asyncio.to_thread(restore_memory, self.lab, self.node.name)


def _hold(lab: LabSpec, name: str, headroom: int) -> int:
    """Limit a machine to what it uses now and ``headroom`` bytes, or a little more, without swap; the limit.

    The kernel refuses a limit that it cannot reclaim down to at once.
    """
    for tries in range(1, _TRIES + 1):
        limit = Groups().usage(lab.group / name).used + headroom * tries
        try:
            limit_memory(lab, name, limit, 0, _AT_ONCE_S)
        except HarnessError:
            if tries == _TRIES:
                raise
        else:
            break
    return limit


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
class SmallCacheDisk(Fault):
    """rpc-server's tensor cache on a file system of its own that a model does not fit."""

    kind = "small-cache-disk"
    expected = FailureClass.DISK_FULL

    size_bytes: int = 64 << 20
    lab: LabSpec | None = None
    began: bool = field(default=False, init=False)

    async def inject(self) -> str:
        await run_as_root(self.node, "systemctl", "stop", RPC_UNIT)
        self.began = True
        if self.lab is not None:
            owner = await run_as_root(self.node, "sh", "-c", "id -u llama-rpc; id -g llama-rpc")
            user, group = (int(word) for word in owner.split())
            await asyncio.to_thread(
                running.attach_disk, self.lab, self.node.name, CACHE, self.size_bytes, owner=(user, group)
            )
        else:
            size = str(self.size_bytes)
            await run_as_root(self.node, "sh", "-s", "--", IMAGE, size, str(CACHE), stdin=_MOUNT)
        await ensure_serving(self.node)
        return f"{CACHE} on a disk of {self.size_bytes / 2**20:.0f} MiB"

    async def undo(self) -> None:
        if not self.began:
            return
        await run_as_root(self.node, "systemctl", "stop", RPC_UNIT)
        if self.lab is not None:
            await asyncio.to_thread(running.detach_disk, self.lab, self.node.name, CACHE)
        else:
            await run_as_root(self.node, "sh", "-s", "--", IMAGE, str(CACHE), stdin=_UMOUNT)
        await ensure_serving(self.node)
