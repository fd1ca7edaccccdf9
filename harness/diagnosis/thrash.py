"""Swap thrash, told from node samples: rpc-server's memory in swap, read back page after page."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Protocol

from harness.contracts.diagnosis import Confidence, Diagnosis, Evidence, FailureClass

SWAPPED_BYTES = 128 << 20
FAULTS_PER_S = 100.0
FULL_PERCENT = 20.0
"""PSI, memory full: of the time in which nothing on the node could run for want of memory."""


class Pressure(Protocol):
    """What the rule needs of one sample."""

    @property
    def time_ns(self) -> int:
        """UTC, nanoseconds."""

    @property
    def rpc_swap_bytes(self) -> int:
        """Memory of rpc-server that is in swap."""

    @property
    def major_faults(self) -> int:
        """Major faults of the node, a counter."""

    @property
    def memory_full_avg10(self) -> float | None:
        """PSI of the last 10 s in percent; None where the kernel counts none for the node."""


def find_thrash(samples: Mapping[str, Sequence[Pressure]]) -> Diagnosis | None:
    """Whether a backend lived off its swap.

    It did where rpc-server had at least 128 MiB in swap and the node took at least 100 major faults a second
    over the window, or stood still for memory a fifth of the time (PSI, median of the samples): the figures
    of a trial of the founding report's kind lie an order of magnitude above.

    Args:
        samples: by node, in order of time, those of the window that is asked about.
    """
    evidence = []
    for node, points in samples.items():
        if len(points) < 2:
            continue
        elapsed = (points[-1].time_ns - points[0].time_ns) / 1e9
        rate = (points[-1].major_faults - points[0].major_faults) / elapsed
        swapped = max(one.rpc_swap_bytes for one in points)
        full = [one.memory_full_avg10 for one in points if one.memory_full_avg10 is not None]
        stood = median(full) if full else 0.0
        if swapped >= SWAPPED_BYTES and (rate >= FAULTS_PER_S or stood >= FULL_PERCENT):
            line = f"rpc-server had up to {swapped / 2**20:.0f} MiB in swap; {rate:.0f} major faults/s"
            line += f", memory full {stood:.0f} % of the time" if full else ""
            evidence.append(Evidence(source=f"samples {node}", line=f"{line} over {elapsed:.0f} s"))
    if not evidence:
        return None
    return Diagnosis(
        failure_class=FailureClass.SWAP_THRASH,
        evidence=evidence,
        confidence=Confidence.LIKELY,
        advice="Put fewer layers there, or give the node more memory: each token reads layers from swap.",
    )
