"""What the nodes around a coordinator decide: links, stalled backends, builds, paging, disks."""

from dataclasses import dataclass, replace

import pytest
from harness.contracts.diagnosis import Confidence, ExitStatus
from harness.diagnosis.classify import classify
from harness.diagnosis.inputs import RPC_SERVER, BackendSnapshot, Inputs

WAITS = Inputs(running=True, waiting=True)
SERVED = BackendSnapshot(state="S", peer="10.0.0.1:40000", cpu_s=0.0, window_s=5.0)
STOPPED = replace(SERVED, state="T")
BUSY = replace(SERVED, state="R", cpu_s=4.9)
LOST = {"server.log": ["x/ggml-rpc.cpp:823: Remote RPC server crashed or returned malformed response"]}
ABORTED = ExitStatus(time_ns=1, signal=6)


def test_stopped_backend_stalls_its_coordinator() -> None:
    found = classify(replace(WAITS, backends={"node1": SERVED, "node2": STOPPED}))
    assert (found.failure_class, found.confidence) == ("backend_stalled", Confidence.CERTAIN)
    assert found.evidence[0].source == "process node2"


def test_backends_that_all_idle_are_likely_stalled() -> None:
    found = classify(replace(WAITS, backends={"node1": SERVED, "node2": SERVED}))
    assert (found.failure_class, found.confidence) == ("backend_stalled", Confidence.LIKELY)


@pytest.mark.parametrize("other", [BUSY, replace(SERVED, state="D"), replace(SERVED, window_s=0.5)])
def test_backend_that_works_or_was_hardly_looked_at_is_not_stalled(other: BackendSnapshot) -> None:
    assert classify(replace(WAITS, backends={"node1": SERVED, "node2": other})).failure_class == "hung"


def test_idle_backends_of_a_coordinator_that_nobody_waits_for_are_well() -> None:
    backends = {"node1": STOPPED}
    assert classify(Inputs(running=True, backends=backends)).failure_class == "unknown"


def test_node_that_does_not_answer_is_a_partition() -> None:
    away = BackendSnapshot(reachable=False, silent_s=42.0)
    found = classify(replace(WAITS, backends={"node1": BUSY, "node2": away}))
    assert (found.failure_class, found.evidence[0].line) == (
        "network_partition",
        "the node cannot be reached; its last sample is 42 s old",
    )
    ended = Inputs(exit=ABORTED, logs=LOST, backends={"node2": away})
    assert classify(ended).failure_class == "network_partition"


def test_node_that_lets_nobody_in_but_whose_samples_come_is_not_cut_off() -> None:
    busy = BackendSnapshot(reachable=False, silent_s=1.2)
    assert classify(replace(WAITS, backends={"node2": busy})).failure_class == "hung"
    assert classify(replace(WAITS, backends={"node2": BackendSnapshot(reachable=False)})).failure_class == (
        "network_partition"
    )


def test_backend_lost_on_a_node_that_answers_is_no_partition() -> None:
    assert (
        classify(Inputs(exit=ABORTED, logs=LOST, backends={"node2": SERVED})).failure_class == "backend_lost"
    )


def test_link_that_went_down_explains_a_lost_backend() -> None:
    journal = {"node2": ["node2 kernel: e1000e 0000:00:1f.6 eth0: NIC Link is Down"]}
    assert classify(Inputs(exit=ABORTED, logs=LOST, journal=journal)).failure_class == "network_partition"


def test_nothing_that_can_be_seen_is_hung() -> None:
    found = classify(WAITS)
    assert (found.failure_class, found.confidence) == ("hung", Confidence.POSSIBLE)


BUILDS = {"node1": "6751 (01d2bdc2b)", "node2": "6792 (aaaaaaaaa)"}


def test_another_build_is_named_while_it_runs() -> None:
    found = classify(Inputs(running=True, builds=BUILDS))
    assert (found.failure_class, found.confidence) == ("build_mismatch", Confidence.CERTAIN)
    assert [one.source for one in found.evidence] == ["build node1", "build node2"]
    same = dict.fromkeys(BUILDS, "6751 (01d2bdc2b)")
    assert classify(Inputs(running=True, builds=same)).failure_class == "unknown"


def test_another_build_explains_a_lost_backend_unless_it_was_killed() -> None:
    assert classify(Inputs(exit=ABORTED, logs=LOST, builds=BUILDS)).failure_class == "build_mismatch"
    killed = {
        "node2": ["systemd[1]: llama-rpc-server.service: Main process exited, code=killed, status=9/KILL"]
    }
    found = classify(Inputs(exit=ABORTED, logs=LOST, builds=BUILDS, journal=killed))
    assert (found.failure_class, found.evidence[-1].source) == ("backend_lost", "journal node2")


@dataclass(frozen=True)
class Point:
    time_ns: int
    rpc_swap_bytes: int
    major_faults: int
    memory_full_avg10: float | None = None


def test_paging_backend_is_the_reason_to_wait() -> None:
    points = [Point(second * 10**9, 900 << 20, second * 5000) for second in range(10)]
    found = classify(replace(WAITS, pressure={"node3": points}, backends={"node3": SERVED}))
    assert (found.failure_class, found.evidence[0].source) == ("swap_thrash", "samples node3")


def test_full_disk_under_the_cache_is_named() -> None:
    full = {"node1": "/var/cache/llama.cpp/rpc: 0 bytes free of 67108864"}
    found = classify(Inputs(process=RPC_SERVER, node="node1", running=True, full_disks=full))
    assert (found.failure_class, found.evidence[0].line) == ("disk_full", full["node1"])


def test_xid_in_the_kernel_log_of_its_node_is_the_driver() -> None:
    journal = {"gpu": ["gpu kernel: NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."]}
    found = classify(Inputs(process=RPC_SERVER, node="gpu", exit=ABORTED, journal=journal))
    assert found.failure_class == "gpu_driver"
    elsewhere = Inputs(process=RPC_SERVER, node="other", exit=ABORTED, journal=journal)
    assert classify(elsewhere).failure_class == "assertion"
