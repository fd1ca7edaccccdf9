"""A node sample of which only the figures that a test names matter."""

from typing import Any

from harness.monitor.sample import Memory, Sample, Source

MEMORY = Memory(
    source=Source.PROC,
    total_bytes=2,
    available_bytes=1,
    used_bytes=1,
    cache_bytes=0,
    swap_total_bytes=0,
    swap_used_bytes=0,
    major_faults=0,
)


def node_sample(time_ns: int, node: str = "node1", **figures: Any) -> Sample:
    """A sample with the smallest figures, and ``figures`` in their place."""
    return Sample(**{"time_ns": time_ns, "node": node, "memory": MEMORY, "cpu_s": 1.0, **figures})
