"""Memory taken away: from the whole machine in a lab, from the backend's unit elsewhere."""

import asyncio
from dataclasses import dataclass, field

from harness.contracts.diagnosis import FailureClass
from harness.errors import HarnessError
from harness.lab.cgroup import Groups
from harness.lab.spec import LabSpec
from harness.monitor.backend_state import RPC_UNIT
from harness.trials.faults.fault import Fault, on, serve_again

_TRIES = 5
_AT_ONCE_S = 1
_PROPERTIES = ("MemoryMax", "MemorySwapMax")


@dataclass
class SqueezeMemory(Fault):
    """Little memory is left and no swap: what is loaded next has the kernel kill a process."""

    kind = "squeeze-memory"
    expected = FailureClass.OOM_KILLED

    headroom_bytes: int = 32 << 20
    """What may still be taken beside what is held now."""
    lab: LabSpec | None = None
    before: dict[str, str] = field(default_factory=dict, init=False)

    async def inject(self) -> str:
        if self.lab is not None:
            limit = await asyncio.to_thread(_hold, self.lab, self.node.name, self.headroom_bytes, 0)
            return f"machine {self.node.name} held to {limit / 2**20:.0f} MiB, no swap"
        return await self._hold_unit()

    async def _hold_unit(self) -> str:
        wanted = ",".join(("MemoryCurrent", *_PROPERTIES))
        shown = await on(self.node, "systemctl", "show", f"--property={wanted}", RPC_UNIT)
        values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
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
        await on(self.node, "systemctl", "set-property", "--runtime", RPC_UNIT, *words)

    async def undo(self) -> None:
        if self.lab is not None:
            await asyncio.to_thread(_release, self.lab, self.node.name)
        elif self.before:
            await self._set(self.before)
        await serve_again(self.node)


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
        await asyncio.to_thread(_limit, self.lab, self.node.name, self.memory_bytes, self.lab.swap)
        return f"machine {self.node.name} held to {self.memory_bytes / 2**20:.0f} MiB, swap beside it"

    async def undo(self) -> None:
        if self.lab is not None:
            await asyncio.to_thread(_release, self.lab, self.node.name)


def _hold(lab: LabSpec, name: str, headroom: int, swap: int) -> int:
    """Hold a machine to what it uses now and ``headroom`` bytes, or a little more; the limit.

    The kernel refuses a limit that it cannot reclaim down to at once.
    """
    for tries in range(1, _TRIES + 1):
        limit = Groups().usage(lab.group / name).used + headroom * tries
        try:
            _limit(lab, name, limit, swap, _AT_ONCE_S)
        except HarnessError:
            if tries == _TRIES:
                raise
        else:
            break
    return limit


def _limit(lab: LabSpec, name: str, memory: int, swap: int, deadline_s: float = 60) -> None:
    Groups().limit(lab.group / name, memory, swap, lab.machine(name).cpu, deadline_s)


def _release(lab: LabSpec, name: str) -> None:
    _limit(lab, name, lab.machine(name).memory, lab.swap)
