"""The state of a backend, from its node's sample alone."""

from typing import Any

import pytest
from harness.monitor.backend_state import (
    RPC_FIREWALL_UNIT,
    RPC_UNIT,
    BackendState,
    State,
    age_s,
    backend_state,
    missing_firewalls,
    state_at_age,
    state_without_redis,
)
from harness.monitor.sample import Process, RpcSocket, Sample, Unit
from tests.node_samples import node_sample

NOW_NS = 1_795_618_783 * 10**9
PEER = "10.77.43.12:40112"


def sample(time_ns: int = NOW_NS, **figures: Any) -> Sample:
    return node_sample(time_ns, **figures)


def rpc(listening: bool, backlog: int = 0, peer: str | None = None) -> RpcSocket:
    return RpcSocket(listening=listening, backlog=backlog, peer=peer)


def unit(active: str, sub: str = "running", result: str = "success") -> dict[str, Unit]:
    return {RPC_UNIT: Unit(active=active, sub=sub, main_pid=0, restarts=3, result=result)}


def process(for_s: float | None = None) -> list[Process]:
    started = None if for_s is None else NOW_NS - int(for_s * 1e9)
    return [Process(pid=7, name="rpc-server", rss_bytes=1, swap_bytes=0, cpu_s=0.1, started_ns=started)]


CASES = [
    ("serves a coordinator", sample(rpc=rpc(True, peer=PEER)), State.BUSY, f"serves {PEER}"),
    (
        "serves, and its full backlog looks closed to a probe",
        sample(rpc=rpc(True, 2, PEER)),
        State.BUSY,
        PEER,
    ),
    (
        "serves while the unit's state is old",
        sample(rpc=rpc(True, 0, PEER), units=unit("failed")),
        State.BUSY,
        PEER,
    ),
    ("serves although nothing listens", sample(rpc=rpc(False, 0, PEER)), State.BUSY, PEER),
    ("has not accepted a connection yet", sample(rpc=rpc(True, 1)), State.BUSY, "1 waiting"),
    ("listens", sample(rpc=rpc(True), units=unit("active")), State.IDLE, "serves nobody"),
    ("listens while units are unknown", sample(rpc=rpc(True)), State.IDLE, "serves nobody"),
    (
        "process has just started",
        sample(rpc=rpc(False), processes=process(3), units=unit("active")),
        State.STARTING,
        "for 3 s",
    ),
    (
        "start time unknown",
        sample(rpc=rpc(False), processes=process()),
        State.STARTING,
        "does not listen yet",
    ),
    ("runs, but never came to listen", sample(rpc=rpc(False), processes=process(90)), State.DOWN, "for 90 s"),
    (
        "waits to be restarted",
        sample(rpc=rpc(False), units=unit("activating", "auto-restart")),
        State.STARTING,
        "restarts: 3",
    ),
    ("was started this moment", sample(rpc=rpc(False), units=unit("active")), State.STARTING, "active"),
    (
        "start limit was hit",
        sample(rpc=rpc(False), units=unit("failed", "failed", "start-limit-hit")),
        State.DOWN,
        "result start-limit-hit",
    ),
    ("was stopped", sample(rpc=rpc(False), units=unit("inactive", "dead")), State.DOWN, "inactive"),
    ("was never deployed", sample(rpc=rpc(False)), State.DOWN, "no unit"),
    ("has no backend", sample(), State.DOWN, "watches no rpc-server"),
    ("was heard a while ago", sample(time_ns=NOW_NS - 12 * 10**9, rpc=rpc(True)), State.SILENT, "12 s old"),
    ("was never heard", None, State.SILENT, "no sample"),
]


@pytest.mark.parametrize(("what", "newest", "state", "reason"), CASES, ids=[case[0] for case in CASES])
def test_state_follows_from_the_nodes_own_sample(
    what: str, newest: Sample | None, state: State, reason: str
) -> None:
    decided = backend_state(newest, NOW_NS)
    assert decided.state is state
    assert reason in decided.reason


def test_clock_that_is_off_makes_no_node_silent() -> None:
    behind = sample(time_ns=NOW_NS - 30 * 10**9, clock_offset_s=-30.0, rpc=rpc(True))
    assert age_s(behind, NOW_NS) == pytest.approx(0, abs=1e-6)
    assert backend_state(behind, NOW_NS) == BackendState(State.IDLE, "listens, serves nobody")


def test_clock_ahead_gives_no_negative_age() -> None:
    assert age_s(sample(time_ns=NOW_NS + 10**9), NOW_NS) == 0


def test_reader_with_its_own_clock_gives_the_age() -> None:
    old = sample(time_ns=1, rpc=rpc(True))
    assert state_at_age(old, 1.0).state is State.IDLE
    assert state_at_age(old, 6.0) == BackendState(State.SILENT, "its last sample is 6 s old")


def test_node_without_a_backend_is_up_or_silent() -> None:
    assert state_at_age(sample(), 1.0, has_backend=False).state is State.UP
    assert state_at_age(sample(), 60.0, has_backend=False).state is State.SILENT


def test_only_a_node_that_sends_samples_is_heard() -> None:
    assert backend_state(sample(rpc=rpc(False)), NOW_NS).has_samples
    assert not backend_state(None, NOW_NS).has_samples
    assert not state_without_redis(leased=False).has_samples


def test_without_redis_a_leased_backend_is_busy_and_another_unknown() -> None:
    assert state_without_redis(leased=True).state is State.BUSY
    assert state_without_redis(leased=False).state is State.UNKNOWN


def test_backend_that_is_stopped_with_its_firewall_says_so() -> None:
    firewall = Unit(active="activating", sub="auto-restart", main_pid=0, restarts=9, result="exit-code")
    units = unit("inactive", "dead") | {RPC_FIREWALL_UNIT: firewall}
    state = backend_state(sample(rpc=rpc(False), units=units), NOW_NS)
    assert (state.state, state.reason) == (
        State.DOWN,
        "no firewall: llama-rpc-firewall.service does not run, see its journal",
    )


def test_firewall_that_holds_or_is_not_deployed_is_not_missing() -> None:
    holds = Unit(active="active", sub="running", main_pid=9, restarts=0, result="success")
    assert missing_firewalls(sample(units=unit("inactive") | {RPC_FIREWALL_UNIT: holds})) == []
    assert missing_firewalls(sample(units=unit("inactive"))) == []
