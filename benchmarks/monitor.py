"""What llama-node-monitor costs a node: share of a core with its children, peak memory, bytes a sample.

    python benchmarks/monitor.py [--inventory inventories/lab] [--seconds 60]

Reads /proc on every node over SSH before and after; the bar is 1% of a core and 60 MB.
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


def look(node: Node) -> tuple[float, int]:
    """CPU seconds of the monitor and its children so far, and its peak resident memory in KiB."""
    said = subprocess.run(node.ssh("sh", "-c", READ), capture_output=True, text=True, check=True).stdout
    stat, _, status = said.partition("\n")
    fields = stat.rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / TICKS_PER_S, int(status.split()[1])


def sample_bytes(node: Node) -> int:
    """Length of the node's next sample as JSON."""
    command = str(NODE_VENV / "bin" / "llama-node-monitor")
    return len(subprocess.run(node.ssh(command, "check"), capture_output=True, check=True).stdout)


def main() -> None:
    """Measure every node over the same seconds and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inventory", type=Path, default=DEFAULT_INVENTORY)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    nodes = load_inventory(options.inventory).nodes.values()
    before = {node.name: (look(node)[0], time.monotonic()) for node in nodes}
    time.sleep(options.seconds)
    for node in nodes:
        # the costs first: asking for a sample is not the monitor's own work
        spent, peak_kib = look(node)
        share = (spent - before[node.name][0]) / (time.monotonic() - before[node.name][1])
        cost = f"{share:.2%} of a core, {peak_kib * 1024 / 1e6:.1f} MB at its peak"
        print(f"{node.name}: {cost}, {sample_bytes(node)} bytes a sample")


if __name__ == "__main__":
    main()
