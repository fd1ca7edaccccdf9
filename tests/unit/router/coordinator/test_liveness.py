"""Slow or stalled: what decides it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest
from harness.contracts.diagnosis import Confidence, FailureClass
from harness.monitor.sample import Memory, Process, RpcSocket, Sample, Source
from harness.router.coordinator.engine import ThreadUse, thread_use
from harness.router.coordinator.liveness import Progress, signs_of_life, stalled

NOW = 10**18
NODES = frozenset({"node1", "node2"})


def sample(node: str, *, cpu_s: float = 1, listens: bool = True, age_s: float = 0) -> Sample:
    memory = Memory(
        source=Source.PROC, total_bytes=1, available_bytes=1, used_bytes=0, cache_bytes=0, swap_total_bytes=0,
        swap_used_bytes=0, major_faults=0,
    )  # fmt: skip
    return Sample(
        time_ns=NOW - int(age_s * 1e9),
        node=node,
        memory=memory,
        cpu_s=1,
        processes=[Process(pid=1, name="rpc-server", rss_bytes=1, swap_bytes=0, cpu_s=cpu_s)]
        if listens
        else [],
        rpc=RpcSocket(listening=listens, backlog=0, peer="10.0.0.1:4" if listens else None),
        units={},
    )


def found(still_s: float, *samples: Sample) -> tuple[FailureClass, Confidence] | None:
    diagnosis = stalled(
        still_s, {s.node: s for s in samples}, NODES, now_ns=NOW, sampled_limit_s=15, unsampled_limit_s=900
    )  # fmt: skip
    return (diagnosis.failure_class, diagnosis.confidence) if diagnosis else None


STALLED = FailureClass.BACKEND_STALLED


@pytest.mark.parametrize(
    ("still_s", "samples", "verdict"),
    [
        # Nobody says how the backends are: only long stillness is a stall.
        (899, [], None),
        (900, [], (STALLED, Confidence.LIKELY)),
        (16, [sample("node1")], None),
        # All nodes are heard of, and none of their rpc-servers has worked.
        (14, [sample("node1"), sample("node2")], None),
        (15, [sample("node1"), sample("node2")], (STALLED, Confidence.CERTAIN)),
        # One says that its backend is gone.
        (15, [sample("node1", listens=False)], (STALLED, Confidence.CERTAIN)),
    ],
)
def test_stall_is_decided_by_evidence(
    still_s: float, samples: list[Sample], verdict: tuple[FailureClass, Confidence] | None
) -> None:
    assert found(still_s, *samples) == verdict


def test_stall_names_the_backend_that_is_gone() -> None:
    gone = {"node1": sample("node1", listens=False)}
    diagnosis = stalled(20, gone, NODES, now_ns=NOW, sampled_limit_s=15, unsampled_limit_s=900)
    assert diagnosis is not None
    assert [evidence.source for evidence in diagnosis.evidence] == ["router", "samples node1"]


@pytest.mark.parametrize(
    ("now", "signs"),
    [
        (Progress(1, ThreadUse(5), {"node1": sample("node1")}), []),
        (Progress(2, ThreadUse(5), {"node1": sample("node1")}), ["bytes"]),
        (Progress(1, ThreadUse(6), {"node1": sample("node1")}), ["main thread"]),
        (Progress(1, ThreadUse(5), {"node1": sample("node1", cpu_s=1.5)}), ["cpu of node1"]),
        # A main thread that spins uses CPU time: that is no progress.
        (Progress(1, ThreadUse(5, 9.0), {"node1": sample("node1")}), []),
        # A node that is no longer heard of, or whose rpc-server is a new one, shows no work.
        (Progress(1, ThreadUse(5), {}), []),
        (Progress(1, ThreadUse(5), {"node1": sample("node1", cpu_s=0.1)}), []),
    ],
)
def test_signs_of_life(now: Progress, signs: list[str]) -> None:
    assert signs_of_life(Progress(1, ThreadUse(5), {"node1": sample("node1")}), now) == signs


def test_thread_that_works_wakes_and_one_that_waits_for_ever_does_not() -> None:
    idle = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(idle, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while state_of(process.pid) != "S":
            time.sleep(0.01)
        before, own = thread_use(process.pid), thread_use(os.getpid())
        time.sleep(0.2)
        assert thread_use(process.pid).wakes == before.wakes > 0
        assert thread_use(os.getpid()).wakes > own.wakes
        process.communicate(b"\n")
    assert thread_use(process.pid) == ThreadUse()


def test_thread_that_a_signal_has_stopped_says_so() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=PIPE) as process:
        assert not thread_use(process.pid).stopped
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        assert thread_use(process.pid).stopped
        process.send_signal(signal.SIGCONT)
        process.communicate(b"\n")


def test_thread_that_spins_is_preempted_and_does_not_wake() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        before = thread_use(process.pid)
        while thread_use(process.pid).cpu_s < before.cpu_s + 0.3:
            time.sleep(0.01)
        assert thread_use(process.pid).wakes <= before.wakes + 1  # at the end of its print
        assert preemptions(process.pid) > 0
        process.kill()


def preemptions(pid: int) -> int:
    """What a spinning thread has many of, with another thread on its core; they once counted as wake-ups."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("nonvoluntary"))


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
