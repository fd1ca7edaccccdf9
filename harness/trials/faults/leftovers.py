"""What a run that was killed amid a fault left on the nodes: looked for there, and undone."""

import asyncio
from collections.abc import Callable, Iterable

from harness.cluster.inventory import Node
from harness.lab import cable, disk
from harness.lab.spec import LabSpec
from harness.monitor.backend_state import RPC_UNIT
from harness.trials.faults.fault import on, serve_again
from harness.trials.faults.files import CACHE, IMAGE
from harness.trials.faults.links import GUARD, TABLE
from harness.trials.faults.starts import DROP_IN, HOLDER_UNIT

_UNDO = r"""
unit=$1 drop_in=$2 holder=$3 table=$4 guard=$5 cache=$6 image=$7 stopped=$8
again() { echo "$1"; restart=1; }
if nft list table inet "$table" >/dev/null 2>&1; then
  nft delete table inet "$table"; systemctl stop "$guard.timer"
  again "dropped packets"
fi
if systemctl is-active --quiet "$holder"; then systemctl stop "$holder"; again "a taken port"; fi
if [ -e "$drop_in" ]; then rm -f "$drop_in"; again "a wrong flag"; fi
limits=/run/systemd/system.control/$unit.d
if grep -qsx MemorySwapMax=0 "$limits/50-MemorySwapMax.conf"; then
  rm -f "$limits/50-MemoryMax.conf" "$limits/50-MemorySwapMax.conf"; again "a memory limit"
fi
if [ -e "$image" ]; then
  systemctl stop "$unit"
  while mountpoint -q "$cache"; do umount "$cache" || exit 1; done
  rm -f "$image"; again "a small cache disk"
fi
pid=$(systemctl show --property=MainPID --value "$unit")
if grep -qs '^State:[[:space:]]*T' "/proc/$pid/status"; then
  kill -CONT "$pid"; again "a frozen rpc-server"
fi
if [ "$restart" ]; then systemctl daemon-reload; systemctl stop "$unit"; fi
if ! systemctl is-active --quiet "$unit"; then [ "$stopped$restart" ] || echo "no rpc-server"; fi
"""
"""Prints a line for each thing that it found, and undid."""


async def undo_leftovers(nodes: Iterable[Node], lab: LabSpec | None, say: Callable[[str], None]) -> None:
    """Undo what the faults of an earlier run left on backends, and have each serve again.

    Another build than the rest's is not put back: it is refused later, with the way out.

    Args:
        lab: the lab that the nodes are machines of, if they are.
        say: called with a line on each node where something was found.

    Raises:
        HarnessError: a node cannot be reached, or its backend does not come up.
    """
    backends = list(nodes)
    found = await asyncio.gather(*(_undone(node, lab) for node in backends))
    for node, left in zip(backends, found, strict=True):
        if left:
            say(f"{node.name}: undid what a run that was killed left there: {', '.join(left)}")


async def _undone(node: Node, lab: LabSpec | None) -> list[str]:
    left = []
    if lab:
        await asyncio.to_thread(cable.full_speed, lab, node.name)
        if await asyncio.to_thread(cable.mend, lab, node.name):
            left.append("a pulled cable")
        if disk.attached(lab, node.name):
            left.append("a small cache disk")
    if left:  # What was cut off waits for a peer that is gone, for ever.
        await on(node, "systemctl", "stop", RPC_UNIT)
    if lab:
        await asyncio.to_thread(disk.detach, lab, node.name, CACHE)
    words = (RPC_UNIT, DROP_IN, HOLDER_UNIT, TABLE, GUARD, str(CACHE), IMAGE, "stopped" if left else "")
    left += (await on(node, "sh", "-s", "--", *words, stdin=_UNDO)).splitlines()
    if left:
        await serve_again(node)
    return left
