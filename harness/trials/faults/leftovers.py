"""Finds and undoes what a run that was killed amid a fault left on the nodes."""

import asyncio
from collections.abc import Callable, Iterable

from harness.cluster.inventory import Node
from harness.lab import running
from harness.lab.machine import Machine
from harness.lab.spec import LabSpec
from harness.monitor.backend_state import RPC_UNIT
from harness.trials.faults.fault import ensure_serving, run_as_root
from harness.trials.faults.links import GUARD, TABLE
from harness.trials.faults.processes import DROP_IN, HOLDER_UNIT
from harness.trials.faults.resources import CACHE, IMAGE

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
"""Prints a line for each thing that it undid."""


async def undo_leftovers(nodes: Iterable[Node], lab: LabSpec | None, say: Callable[[str], None]) -> None:
    """Undo what the faults of an earlier run left on backends, and have each serve again.

    Another build than the rest's is not put back: it is refused later, with the way out.

    Raises:
        HarnessError: a node is unreachable, or its backend does not come up.
    """
    backends = list(nodes)
    leftovers = await asyncio.gather(*(_undo(node, lab) for node in backends))
    for node, left in zip(backends, leftovers, strict=True):
        if left:
            say(f"{node.name}: undid what a run that was killed left there: {', '.join(left)}")


async def _undo(node: Node, lab: LabSpec | None) -> list[str]:
    left = []
    if lab:
        await asyncio.to_thread(running.restore_rate, lab, node.name)
        if await asyncio.to_thread(running.plug_cable, lab, node.name):
            left.append("a pulled cable")
        if Machine(lab, node.name).disk_image.exists():
            left.append("a small cache disk")
    if left:  # What was cut off waits for a peer that is gone, for ever.
        await run_as_root(node, "systemctl", "stop", RPC_UNIT)
    if lab:
        await asyncio.to_thread(running.detach_disk, lab, node.name, CACHE)
    words = (RPC_UNIT, DROP_IN, HOLDER_UNIT, TABLE, GUARD, str(CACHE), IMAGE, "stopped" if left else "")
    left += (await run_as_root(node, "sh", "-s", "--", *words, stdin=_UNDO)).splitlines()
    if left:
        await ensure_serving(node)
    return left
