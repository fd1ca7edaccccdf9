"""A node's link cut or slowed: in a lab its cable, elsewhere what its backend and the head node exchange."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from harness.cluster.inventory import Node
from harness.cluster.ssh import run_on
from harness.contracts.diagnosis import FailureClass
from harness.lab import running
from harness.lab.spec import LabSpec
from harness.trials.faults.fault import Fault, run_as_root

TABLE = "llama_fault"
GUARD = "llama-fault-undo"
GUARD_S = 600
"""After this long the node lifts the fault by itself, should nobody come back to do it."""


@dataclass
class CutLink(Fault):
    """Nothing passes between the node and the others (in a lab), or between its backend and the head node."""

    kind = "cut-link"
    expected = FailureClass.NETWORK_PARTITION

    head: Node
    lab: LabSpec | None = None

    async def inject(self) -> str:
        if self.lab is not None:
            await asyncio.to_thread(running.unplug_cable, self.lab, self.node.name)
            return f"cable of {self.node.name} pulled"
        await _drop(self.node, self.head, "drop")
        return f"packets between {self.head.name} and {self.node.rpc_endpoint} dropped"

    async def undo(self) -> None:
        await _lift(self.node, self.lab, running.plug_cable)


@dataclass
class SlowLink(Fault):
    """The node's link passes ``bytes_per_s`` and no more."""

    kind = "slow-link"
    expected = FailureClass.UNKNOWN
    """Slow is no failure: the load's lower bounds show it."""

    head: Node
    bytes_per_s: int = 12_500_000
    lab: LabSpec | None = None

    async def inject(self) -> str:
        if self.lab is not None:
            rate = f"{self.bytes_per_s * 8 // 1000}kbit"
            await asyncio.to_thread(running.limit_rate, self.lab, self.node.name, rate)
        else:
            kilobytes = max(1, self.bytes_per_s // 1024)
            await _drop(self.node, self.head, f"limit rate over {kilobytes} kbytes/second drop")
        return f"link of {self.node.name} held to {self.bytes_per_s / 1e6:g} MB/s"

    async def undo(self) -> None:
        await _lift(self.node, self.lab, running.restore_rate)


async def _drop(node: Node, head: Node, verdict: str) -> None:
    """Apply ``verdict`` to the backend's traffic with the head node, in a table of our own.

    Only that traffic: a control machine beside the head node must still be able to come and undo it.
    """
    port = node.rpc_endpoint.rpartition(":")[2]
    ruleset = f"""
table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
    chain input {{
        type filter hook input priority filter - 20; policy accept;
        ip saddr {head.address} tcp dport {port} {verdict}
    }}
    chain output {{
        type filter hook output priority filter - 20; policy accept;
        ip daddr {head.address} tcp sport {port} {verdict}
    }}
}}
"""
    guard = ("systemd-run", "--quiet", "--collect", f"--unit={GUARD}", f"--on-active={GUARD_S}")
    await run_as_root(node, *guard, "nft", "delete", "table", "inet", TABLE)
    await run_as_root(node, "nft", "-f", "-", stdin=ruleset)


async def _lift(node: Node, lab: LabSpec | None, restore: Callable[[LabSpec, str], object]) -> None:
    if lab is not None:
        await asyncio.to_thread(restore, lab, node.name)
        return
    await run_on(node, "nft", "delete", "table", "inet", TABLE, root=True)
    await run_on(node, "systemctl", "stop", f"{GUARD}.timer", root=True)
