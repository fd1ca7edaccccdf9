"""Records of a run, as short as they may be."""

from harness.contracts.run_records import Outcome, Trial
from harness.monitor.sample import Memory, Network, Process, Sample, Source

MIB = 1 << 20


def trial(name: str, **metrics: float) -> Trial:
    return Trial(
        id=name,
        kind="load",
        model="m",
        started_ns=1,
        ended_ns=2,
        outcome=Outcome.PASSED,
        answer="ready",
        metrics=metrics,
        details={"nodes": ["node1"]},
    )


def sample(second: int, node: str = "node1", swap: int = 0) -> Sample:
    memory = Memory(
        source=Source.CGROUP,
        total_bytes=1024 * MIB,
        available_bytes=512 * MIB,
        used_bytes=(100 + second) * MIB,
        cache_bytes=0,
        swap_total_bytes=MIB,
        swap_used_bytes=swap,
        major_faults=second,
    )
    rpc = Process(pid=7, name="rpc-server", rss_bytes=50 * MIB, swap_bytes=swap, cpu_s=1.0)
    network = Network(interface="host0", received_bytes=1000 * second, sent_bytes=0)
    return Sample(
        time_ns=second * 10**9, node=node, memory=memory, cpu_s=1.5, processes=[rpc], network=network
    )
