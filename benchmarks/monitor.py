"""Measure the cost of llama-node-monitor: share of a core (children included), peak memory, bytes per sample.

    python benchmarks/monitor.py [--inventory inventories/lab] [--seconds 60]

It reads /proc on every node over SSH before and after; the goal is 1% of a core and 60 MB.
"""

import argparse
import subprocess
import time
from pathlib import Path

from harness.cluster.inventory import Node, load_inventory
from harness.settings import DEFAULT_INVENTORY, NODE_VENV

UNIT = "llama-node-monitor.service"
READ = f"cd /proc/$(systemctl show --property MainPID --value {UNIT}) && cat stat && grep VmHWM status"
TICKS_PER_S = 100


def cost(node: Node) -> tuple[float, int]:
    """CPU seconds of the monitor and its children so far, and its peak resident memory in KiB."""
    output = subprocess.run(node.ssh("sh", "-c", READ), capture_output=True, text=True, check=True).stdout
    stat, _, status = output.partition("\n")
    fields = stat.rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / TICKS_PER_S, int(status.split()[1])


def sample_bytes(node: Node) -> int:
    """Length of the node's next sample as JSON."""
    command = str(NODE_VENV / "bin" / "llama-node-monitor")
    return len(subprocess.run(node.ssh(command, "check"), capture_output=True, check=True).stdout)


def main() -> None:
    """Measure all nodes during the same time and print one line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inventory", type=Path, default=DEFAULT_INVENTORY)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    nodes = load_inventory(options.inventory).nodes.values()
    before = {node.name: (cost(node)[0], time.monotonic()) for node in nodes}
    time.sleep(options.seconds)
    for node in nodes:
        # before sample_bytes, because its cost is not the monitor's
        spent, peak_kib = cost(node)
        share = (spent - before[node.name][0]) / (time.monotonic() - before[node.name][1])
        text = f"{share:.2%} of a core, {peak_kib * 1024 / 1e6:.1f} MB at its peak"
        print(f"{node.name}: {text}, {sample_bytes(node)} bytes a sample")


if __name__ == "__main__":
    main()
