"""The coordinator's states: what each event does in each of them, without llama-server."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from harness.contracts.coordinator_state import CoordinatorPhase
from harness.contracts.diagnosis import Diagnosis, FailureClass
from harness.contracts.plan import LoadRequest
from harness.router.config import RouterConfig
from harness.router.coordinator import engine, liveness, manager, post_mortem, readiness
from harness.router.coordinator.engine import LoadError, Slots, ThreadUse
from harness.router.coordinator.instance import CoordinatorInstance
from harness.router.coordinator.post_mortem import PostMortem
from harness.router.errors import RouterError
from harness.router.in_flight import SentRequest
from harness.router.nodes.samples import NodeSamples
from tests.unit.router.coordinator.fakes import Bench, bench, until


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "_SNAPSHOT_S", 0.1)
    monkeypatch.setattr(readiness, "_LOG_LAG_S", 0.2)


async def refused(work: asyncio.Task[str]) -> RouterError:
    with pytest.raises(RouterError) as caught:
        await work
    return caught.value


async def loading(at: Bench, model: str = "a") -> asyncio.Task[str]:
    """A request whose model is being loaded and does not become ready."""
    at.engine.healthy = False
    asked = asyncio.create_task(at.ask(model))
    before = len(at.engine.processes)
    await until(lambda: len(at.engine.processes) > before)
    return asked


# Requests: queue, load, switch.


async def test_first_request_loads_the_model_and_the_next_one_uses_it(tmp_path: Path) -> None:
    at = bench(tmp_path)
    assert await at.ask() == await at.ask()
    assert (at.manager.loaded, at.manager.state.phase) == ("a", CoordinatorPhase.READY)
    assert len(at.engine.processes) == 1
    await at.manager.close()


async def test_requests_that_come_together_share_one_load(tmp_path: Path) -> None:
    at = bench(tmp_path)
    answers = await asyncio.gather(*(at.ask() for _ in range(5)))
    assert len(set(answers)) == 1
    await at.manager.close()


async def test_request_for_another_model_waits_for_the_answers_and_then_switches(tmp_path: Path) -> None:
    at = bench(tmp_path)
    async with at.manager.acquire("a") as grant:
        other = asyncio.create_task(at.ask("b"))
        await until(lambda: at.manager.queue != [] or grant.instance.phase is CoordinatorPhase.STOPPING)
        assert not at.engine.process.signals
    await other
    assert at.manager.loaded == "b"
    assert [sent.reason for sent in at.engine.processes[0].signals] == ["b is to be loaded"]
    await at.manager.close()


async def test_requests_in_flight_are_bounded_and_the_rest_waits(tmp_path: Path) -> None:
    at, release = bench(tmp_path), asyncio.Event()
    await at.ask()

    async def hold() -> None:
        async with at.manager.acquire("a"):
            await release.wait()

    tasks = [asyncio.create_task(hold()) for _ in range(4)]
    await until(lambda: at.manager.state.requests_in_flight == 2)
    assert [entry.position for entry in at.manager.queue] == [1, 2]
    release.set()
    await asyncio.gather(*tasks)
    assert (at.manager.state.requests_in_flight, at.manager.queue) == (0, [])
    await at.manager.close()


async def test_grant_shows_position_and_wait(tmp_path: Path) -> None:
    at = bench(tmp_path)
    async with at.manager.acquire("a") as grant:
        assert grant.headers["x-llama-queue-position"] == "1"
        assert float(grant.headers["x-llama-queue-wait"]) >= 0
        assert grant.url == at.engine.url
    await at.manager.close()


async def test_client_that_leaves_the_queue_is_forgotten(tmp_path: Path) -> None:
    at = bench(tmp_path)
    asked = await loading(at)
    second = asyncio.create_task(at.ask())
    await until(lambda: len(at.manager.queue) == 2)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert len(at.manager.queue) == 1
    at.engine.healthy = True
    await asked
    assert at.manager.state.requests_in_flight == 0
    await at.manager.close()


async def test_client_that_leaves_in_the_moment_of_its_grant_gives_it_back(tmp_path: Path) -> None:
    at, release = bench(tmp_path), asyncio.Event()
    await at.ask()

    async def hold() -> None:
        async with at.manager.acquire("a"):
            await release.wait()

    holders = [asyncio.create_task(hold()) for _ in range(2)]
    await until(lambda: at.manager.state.requests_in_flight == 2)
    waiter = asyncio.create_task(at.ask())
    await until(lambda: len(at.manager.queue) == 1)
    release.set()
    await until(lambda: at.manager.queue == [])
    waiter.cancel()
    await asyncio.gather(waiter, *holders, return_exceptions=True)
    assert at.manager.state.requests_in_flight == 0
    await at.manager.close()


async def test_wait_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    at = bench(tmp_path, queue_wait_s=0.05)
    error = await refused(await loading(at))
    assert (error.status, error.error_class) == (503, "queue_timeout")
    await at.manager.close()


async def test_full_queue_is_refused_at_once(tmp_path: Path) -> None:
    at = bench(tmp_path, queue_limit=1)
    asked = await loading(at)
    error = await refused(asyncio.create_task(at.ask()))
    assert (error.status, error.error_class) == (503, "queue_full")
    await at.manager.close()
    await asyncio.gather(asked, return_exceptions=True)


# Failing loads.


async def test_failed_load_reaches_every_request_that_waits_for_it(tmp_path: Path) -> None:
    at = bench(tmp_path)
    at.engine.log = "load_tensors: offloaded 1/2 layers to GPU\n"
    errors = await asyncio.gather(*(at.ask() for _ in range(3)), return_exceptions=True)
    assert [getattr(error, "error_class", None) for error in errors] == ["not_distributed"] * 3
    assert at.manager.state.phase is CoordinatorPhase.ENDED
    await at.manager.close()


async def test_load_that_never_becomes_healthy_ends_at_its_deadline(tmp_path: Path) -> None:
    at = bench(tmp_path, load_deadline_s=0.02)
    error = await refused(await loading(at))
    assert (error.status, error.error_class) == (504, "hung")
    assert at.engine.process.exit is not None
    await at.manager.close()


async def test_port_of_another_program_is_an_error_without_a_retry(tmp_path: Path) -> None:
    at = bench(tmp_path)
    at.engine.refuses = LoadError(FailureClass.PORT_IN_USE, "another program listens on 127.0.0.1:18080")
    error = await refused(asyncio.create_task(at.ask()))
    assert error.error_class == "port_in_use"
    at.engine.refuses = None
    await at.ask()
    await at.manager.close()


async def test_answer_of_another_program_is_not_taken_for_ours(tmp_path: Path) -> None:
    at = bench(tmp_path)
    at.engine.owns = False
    error = await refused(asyncio.create_task(at.ask()))
    assert error.error_class == "port_in_use"
    await at.manager.close()


async def test_model_that_cannot_be_planned_is_refused_and_the_router_goes_on(tmp_path: Path) -> None:
    at = bench(tmp_path)
    at.planner.error = RouterError(507, "does_not_fit", "too large")
    assert (await refused(asyncio.create_task(at.ask()))).error_class == "does_not_fit"
    at.planner.error = None
    await at.ask()
    await at.manager.close()


async def test_unforeseen_exception_of_a_load_is_answered_counted_and_survived(tmp_path: Path) -> None:
    at = bench(tmp_path)

    async def broken(request: LoadRequest, **_: object) -> None:
        raise PermissionError(13, "Permission denied")

    prepare, at.planner.prepare = at.planner.prepare, broken  # type: ignore[assignment, method-assign]
    error = await refused(asyncio.create_task(at.ask()))
    assert (error.status, error.message) == (500, "a: the load broke off: see the router's journal")
    assert at.failed_tasks
    at.planner.prepare = prepare  # type: ignore[method-assign]
    await at.ask()
    await at.manager.close()


async def test_doomed_load_ends_before_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.router.coordinator.launcher._BACKENDS_POLL_S", 0.001)
    at = bench(tmp_path, restart_budget=1)
    asked = await loading(at)
    at.backends.stale["node1"] = "node1: its rpc-server still serves a connection"
    await refused(asked)
    assert [failure.failure_class for failure in at.manager.failures] == ["backend_unreachable"]
    assert "still serves a connection" in at.manager.failures[0].message
    await at.manager.close()


# Loss and recovery.


async def test_coordinator_that_dies_is_loaded_again_although_no_request_waits(tmp_path: Path) -> None:
    at = bench(tmp_path)
    lost = await at.loaded()
    at.engine.process.die()
    await until(lambda: len(at.engine.processes) == 2 and at.manager.loaded == "a")
    assert lost.died_unexpectedly
    assert [failure.failure_class for failure in at.manager.failures] == ["segfault"]
    await at.manager.close()


async def test_request_whose_coordinator_dies_gets_the_diagnosis(tmp_path: Path) -> None:
    at = bench(tmp_path)
    async with at.manager.acquire("a") as grant:
        at.engine.process.die()
        error = await at.manager.describe_failure(grant.instance, "connection reset")
    assert (error.status, error.error_class) == (502, "segfault")
    assert error.message.endswith("look at the log")
    await at.manager.close()


def test_diagnosis_is_waited_for_as_long_as_it_may_take() -> None:
    assert manager._DIAGNOSIS_WAIT_S > engine._LOG_END_S + post_mortem._SAMPLE_WAIT_S


async def test_broken_answer_of_a_live_coordinator_is_not_called_a_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.router.coordinator.manager._DIAGNOSIS_WAIT_S", 0.01)
    at = bench(tmp_path)
    async with at.manager.acquire("a") as grant:
        error = await at.manager.describe_failure(grant.instance, "connection reset")
    assert error.error_class == "unknown"
    await at.manager.close()


async def test_load_that_dies_is_tried_again_within_the_budget(tmp_path: Path) -> None:
    at = bench(tmp_path)
    at.engine.dies_at_start = 1
    await at.ask()
    assert len(at.engine.processes) == 2
    await at.manager.close()


async def test_spent_budget_refuses_with_the_last_diagnosis(tmp_path: Path) -> None:
    at = bench(tmp_path, restart_budget=2)
    at.engine.dies_at_start = 9
    error = await refused(asyncio.create_task(at.ask()))
    assert (error.status, error.error_class) == (503, "restart_budget_spent")
    assert len(at.engine.processes) == 2
    at.engine.dies_at_start = 0
    await at.manager.load(LoadRequest(model="a"))
    assert at.manager.loaded == "a", "an administrator's load resets the budget"
    await at.manager.close()


async def test_budget_is_not_reset_by_an_administrators_load_that_waits(tmp_path: Path) -> None:
    """The reset comes with the lease: until then the failures of the load that has it still count."""
    at = bench(tmp_path, restart_budget=2)
    at.engine.dies_at_start = 2
    first, second = asyncio.Event(), asyncio.Event()
    at.planner.gate = first
    asked = asyncio.create_task(at.ask())
    await until(lambda: len(at.planner.requests) == 1)
    at.planner.gate = second
    first.set()
    await until(lambda: len(at.planner.requests) == 2)
    load = asyncio.create_task(at.manager.load(LoadRequest(model="b")))
    await asyncio.sleep(0)  # it runs up to its wait for the lease
    second.set()
    assert (await refused(asked)).error_class == "restart_budget_spent"
    assert (await load).model == "b"
    await at.manager.close()


async def test_lost_model_is_not_tried_for_ever(tmp_path: Path) -> None:
    at = bench(tmp_path, restart_budget=2)
    await at.ask()
    at.engine.dies_at_start = 9
    at.engine.process.die()
    await until(lambda: len(at.manager.failures) == 2 and not at.manager._serves_queue)
    assert len(at.engine.processes) == 2
    await at.manager.close()


async def test_backend_that_is_missing_is_planned_without(tmp_path: Path) -> None:
    at = bench(tmp_path)
    at.backends.missing["node1"] = "node1: nobody listens"
    error = await refused(asyncio.create_task(at.ask()))
    assert (error.status, error.error_class) == (503, "backend_unreachable")
    assert "there is no other backend" in error.message
    at.backends.missing.clear()
    await at.ask()
    await at.manager.close()


async def test_diagnosis_that_raises_does_not_wedge_the_coordinator(tmp_path: Path) -> None:
    """An instance whose end cannot be explained has ended all the same."""
    at = bench(tmp_path)
    lost = await at.loaded()
    at.post_mortem.error = ValueError("unreadable log")
    at.engine.process.die()
    await asyncio.wait_for(lost.ended.wait(), 5)
    at.post_mortem.error = None
    await asyncio.wait_for(at.ask(), 5)
    assert at.failed_tasks, "the failure is counted"
    await at.manager.close()


async def test_start_that_cannot_be_noted_does_not_wedge_the_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = bench(tmp_path)

    async def broken(instance: CoordinatorInstance) -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a sample that is no text")

    monkeypatch.setattr(at.post_mortem, "note_start", broken)
    lost = await at.loaded()
    at.engine.process.die()
    await asyncio.wait_for(lost.ended.wait(), 5)
    assert lost.state.exit is not None
    await at.ask()
    await at.manager.close()


async def test_record_that_raises_does_not_hide_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = bench(tmp_path)
    lost = await at.loaded()

    def broken() -> None:
        raise UnicodeEncodeError("utf-8", "\udc80", 0, 1, "surrogates not allowed")

    monkeypatch.setattr(lost, "save", broken)
    at.engine.process.die()
    await asyncio.wait_for(lost.ended.wait(), 5)
    await asyncio.wait_for(at.ask(), 5)
    await at.manager.close()


# Requests that end or hang the coordinator.


async def test_deaths_that_requests_caused_are_nobody_elses_budget(tmp_path: Path) -> None:
    at = bench(tmp_path, restart_budget=1)
    at.post_mortem.poison = SentRequest("id", "key", "digest", "a")
    for _ in range(3):
        lost = await at.loaded()
        at.engine.process.die()
        await lost.ended.wait()
    await at.ask()
    at.post_mortem.poison = None
    await at.manager.close()


async def test_deaths_through_one_of_several_requests_spend_the_budget_and_are_listed_once(
    tmp_path: Path,
) -> None:
    at = bench(tmp_path, restart_budget=1)
    at.post_mortem.diagnose = PostMortem(  # type: ignore[method-assign]
        RouterConfig(address="127.0.0.1"), NodeSamples(None), at.failures
    ).diagnose
    lost = await at.loaded()
    for name in ("one", "two"):
        lost.sent.add(SentRequest(name, "key", name, "a"))
    at.engine.process.die(signal.SIGSEGV)
    await lost.ended.wait()
    with pytest.raises(RouterError) as raised:
        await at.ask()
    assert raised.value.error_class == "restart_budget_spent"
    assert len(at.failures.history) == 1
    await at.manager.close()


async def test_request_beside_the_poison_is_told_no_more_than_to_ask_again(tmp_path: Path) -> None:
    at = bench(tmp_path)
    async with at.manager.acquire("a") as grant:
        at.post_mortem.poison = SentRequest("id", "key", "digest", "a")
        at.engine.process.die()
        error = await at.manager.describe_failure(grant.instance, "cut off")
    assert (error.status, error.error_class, error.diagnosis) == (502, "coordinator_lost", None)
    at.post_mortem.poison = None
    await at.manager.close()


async def test_coordinator_that_hangs_without_a_request_is_found_and_loaded_again(tmp_path: Path) -> None:
    at = bench(tmp_path, suspect_s=0.01, stall_deadline_s=0.02, canary_deadline_s=0)
    hung = await at.loaded()
    at.engine.hangs = True  # its client has left
    await asyncio.wait_for(hung.ended.wait(), 15)
    at.engine.hangs = False
    await until(lambda: at.manager.loaded == "a")
    await at.manager.close()


async def test_clients_that_come_and_leave_do_not_hide_a_hang(tmp_path: Path) -> None:
    at = bench(tmp_path, suspect_s=0.2, stall_deadline_s=0.02, canary_deadline_s=0)
    hung = await at.loaded()
    at.engine.hangs = True
    async with asyncio.timeout(15):
        while not hung.ended.is_set():
            async with at.manager.acquire("a"):
                await hung.ended_within(0.05)
    at.engine.hangs = False
    assert hung.failure == "backend_stalled"
    await at.manager.close()


async def test_main_thread_that_spins_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = bench(tmp_path, suspect_s=0.01, spin_deadline_s=0.5, canary_deadline_s=0)
    hung = await at.loaded()
    monkeypatch.setattr(at.engine, "main_thread", lambda process: ThreadUse(7, time.monotonic()))
    at.engine.hangs = True
    await asyncio.wait_for(hung.ended.wait(), 15)
    at.engine.hangs = False
    assert hung.failure == "hung"
    assert "main thread used" in hung.state.signals[0].reason
    await at.manager.close()


async def test_stopped_coordinator_is_not_a_stalled_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = bench(tmp_path, suspect_s=0.01, stall_deadline_s=0.02, canary_deadline_s=0)
    frozen = await at.loaded()
    monkeypatch.setattr(at.engine, "main_thread", lambda process: ThreadUse(7, 1.0, stopped=True))
    at.engine.hangs = True
    await asyncio.wait_for(frozen.ended.wait(), 15)
    at.engine.hangs = False
    assert (frozen.failure, frozen.poison) == ("stopped_busy", None)
    assert "stopped (state T)" in frozen.state.signals[0].reason
    await at.manager.close()


async def test_node_that_answered_and_answers_no_more_is_cut_off(tmp_path: Path) -> None:
    at = bench(tmp_path, suspect_s=0.01, canary_deadline_s=0)
    waits = await at.loaded()
    await until(lambda: bool(waits.answering))
    at.backends.cut = {"node1": "10.0.0.1: No route to host"}
    at.engine.hangs = True
    await asyncio.wait_for(waits.ended.wait(), 15)
    at.engine.hangs = False
    assert waits.failure == "network_partition"
    assert waits.state.diagnosis is not None
    assert [evidence.source for evidence in waits.state.diagnosis.evidence] == ["router", "node node1"]
    await at.manager.close()


async def test_node_that_never_answered_is_not_called_cut_off(tmp_path: Path) -> None:
    at = bench(tmp_path, suspect_s=0.01, stall_deadline_s=0.5, canary_deadline_s=0)
    at.backends.cut = {"node1": "no answer from 10.0.0.1 within 2 s"}
    waits = await at.loaded()
    at.engine.hangs = True
    await asyncio.wait_for(waits.ended.wait(), 15)
    at.engine.hangs = False
    assert waits.failure == "backend_stalled"
    await at.manager.close()


async def test_watch_that_fails_is_counted_and_started_again(tmp_path: Path) -> None:
    at = bench(tmp_path, suspect_s=0.01, stall_deadline_s=0.02, canary_deadline_s=0)
    hung = await at.loaded()
    at.backends.error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a sample that is no text")
    at.engine.hangs = True
    await asyncio.wait_for(hung.ended.wait(), 15)
    at.engine.hangs = False
    assert at.failed_tasks
    assert hung.failure == "backend_stalled"
    await at.manager.close()


# Administrators: load, unload, hold.


async def test_same_load_keeps_the_instance_and_another_command_line_replaces_it(tmp_path: Path) -> None:
    at = bench(tmp_path)
    first = await at.manager.load(LoadRequest(model="a"))
    assert (await at.manager.load(LoadRequest(model="a"))).start_id == first.start_id
    second = await at.manager.load(LoadRequest(model="a", context=512))
    assert second.start_id != first.start_id
    assert len(at.manager.starts) == 2
    await at.manager.close()


async def test_administrators_settings_end_with_the_unload(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.manager.load(LoadRequest(model="a", context=512, n_gpu_layers=99))
    await at.ask()
    await at.manager.unload(signal="SIGTERM", deadline_s=0)
    await at.ask()
    assert [request.context for request in at.planner.requests] == [512, None]
    await at.manager.close()


async def test_administrators_settings_end_with_a_switch_to_another_model(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.manager.load(LoadRequest(model="a", context=512))
    await at.ask("b")
    await at.ask("a")
    assert [request.context for request in at.planner.requests] == [512, None, None]
    await at.manager.close()


async def test_administrators_settings_outlive_a_loss(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.manager.load(LoadRequest(model="a", context=512, cold=False, deadline_s=60))
    at.engine.process.die()
    await until(lambda: at.manager.state.phase is CoordinatorPhase.ENDED)
    await at.ask()
    again = at.planner.requests[-1]
    assert (again.context, again.cold, again.deadline_s) == (512, False, None)
    await at.manager.close()


async def test_load_that_an_administrator_asked_for_is_not_repeated_by_itself(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.manager.load(LoadRequest(model="a"))
    at.engine.process.die()
    await until(lambda: at.manager.failures != [])
    assert not at.manager._serves_queue
    assert len(at.engine.processes) == 1
    await at.manager.close()


async def test_cold_load_replaces_the_same_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[Path] = []
    monkeypatch.setattr("harness.router.coordinator.loads._drop_page_cache", dropped.append)
    at = bench(tmp_path)
    await at.manager.load(LoadRequest(model="a"))
    await at.manager.load(LoadRequest(model="a", cold=True))
    assert (len(at.engine.processes), dropped) == (2, [Path("/m")])
    await at.manager.close()


async def test_load_that_does_not_fit_leaves_what_is_loaded(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.ask()
    at.planner.error = RouterError(507, "does_not_fit", "too large")
    with pytest.raises(RouterError):
        await at.manager.load(LoadRequest(model="b"))
    assert at.manager.loaded == "a"
    await at.manager.close()


async def test_load_behind_a_stale_connection_is_refused(tmp_path: Path) -> None:
    at = bench(tmp_path)
    at.backends.stale["node1"] = "node1: its rpc-server still serves a connection"
    with pytest.raises(RouterError, match="still serves a connection; then load again"):
        await at.manager.load(LoadRequest(model="a"))
    await at.manager.close()


@pytest.mark.parametrize("asks", ["requests", "administrator"])
async def test_memory_of_the_replaced_coordinator_is_planned_with(tmp_path: Path, asks: str) -> None:
    at = bench(tmp_path)
    await at.ask("a")
    at.engine.process.pid = os.getpid()  # one that /proc knows
    at.manager.state.pid = os.getpid()
    if asks == "requests":
        await at.ask("b")
    else:
        await at.manager.load(LoadRequest(model="b"))
    assert at.planner.replaced == [None, os.getpid()]
    await at.manager.close()


async def test_unload_of_nothing_says_so(tmp_path: Path) -> None:
    at = bench(tmp_path)
    state = await at.manager.unload(signal="SIGTERM", deadline_s=0)
    assert state.phase is CoordinatorPhase.ABSENT
    await at.manager.close()


async def test_unload_stops_an_idle_coordinator_and_reports_it(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.ask()
    state = await at.manager.unload(signal="SIGINT", deadline_s=0)
    assert state.phase is CoordinatorPhase.ENDED
    assert [sent.name for sent in state.signals][:1] == ["SIGINT"]
    assert at.manager.loaded is None
    await at.manager.close()


async def test_unload_ends_a_load_that_is_under_way(tmp_path: Path) -> None:
    at = bench(tmp_path)
    asked = await loading(at)
    state = await asyncio.wait_for(at.manager.unload(signal="SIGTERM", deadline_s=0), 5)
    error = await refused(asked)
    assert (error.status, error.error_class, state.phase) == (409, "stopped", CoordinatorPhase.ENDED)
    assert [sent.reason for sent in state.signals] == ["unloaded while it was loading"]
    await at.manager.close()


async def test_unload_is_heard_while_a_switch_waits_for_answers(tmp_path: Path) -> None:
    """SIGKILL with no deadline does not wait for the drain of the switch."""
    at = bench(tmp_path, switch_drain_s=600)
    async with at.manager.acquire("a") as grant:
        switch = asyncio.create_task(at.ask("b"))
        await until(lambda: grant.instance.phase is CoordinatorPhase.STOPPING)
        state = await asyncio.wait_for(at.manager.unload(signal="SIGKILL", deadline_s=0), 5)
    assert [sent.name for sent in state.signals] == ["SIGKILL"]
    assert (await refused(switch)).status == 409
    await at.manager.close()


async def test_unload_is_heard_while_a_load_is_planned(tmp_path: Path) -> None:
    at = bench(tmp_path)
    at.planner.gate = asyncio.Event()
    asked = asyncio.create_task(at.ask())
    await until(lambda: at.planner.requests != [])
    await asyncio.wait_for(at.manager.unload(signal="SIGTERM", deadline_s=0), 5)
    assert (await refused(asked)).status == 409
    assert at.engine.processes == []
    await at.manager.close()


async def test_unload_is_heard_while_a_recovery_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.router.coordinator.recovery.pause_s", lambda _: 600)
    at = bench(tmp_path)
    asked = asyncio.create_task(at.ask())
    await asyncio.sleep(0.01)
    await asyncio.wait_for(at.manager.unload(signal="SIGTERM", deadline_s=0), 5)
    assert (await refused(asked)).status == 409
    await at.manager.close()


async def test_unload_ends_an_administrators_load(tmp_path: Path) -> None:
    at = bench(tmp_path)
    at.engine.healthy = False
    load = asyncio.create_task(at.manager.load(LoadRequest(model="a")))
    await until(lambda: at.engine.processes != [])
    await at.manager.unload(signal="SIGTERM", deadline_s=0)
    with pytest.raises(RouterError) as caught:
        await load
    assert caught.value.status == 409
    assert caught.value.state is not None
    assert caught.value.state.signals
    await at.manager.close()


async def test_administrator_who_leaves_ends_the_load(tmp_path: Path) -> None:
    at = bench(tmp_path)
    at.engine.healthy = False
    load = asyncio.create_task(at.manager.load(LoadRequest(model="a")))
    await until(lambda: at.engine.processes != [])
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    assert at.engine.process.exit is not None
    assert at.manager.state.phase is CoordinatorPhase.ENDED
    await at.manager.close()


async def test_unload_of_a_lost_model_is_final(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.ask()
    at.engine.healthy = False
    at.engine.process.die()
    await until(lambda: len(at.engine.processes) == 2)
    await at.manager.unload(signal="SIGTERM", deadline_s=0)
    at.engine.healthy = True
    await until(lambda: not at.manager._serves_queue)
    assert at.manager.loaded is None
    assert len(at.engine.processes) == 2
    await at.manager.close()


async def test_busy_unload_waits_for_its_deadline_and_then_signals_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.router.coordinator.launcher._SECOND_SIGNAL_S", 0.01)
    at = bench(tmp_path)
    at.engine.ends_at = frozenset({"SIGKILL"})
    async with at.manager.acquire("a"):
        at.engine.busy = 1
        state = await at.manager.unload(signal="SIGTERM", deadline_s=0.01)
    assert [(sent.name, sent.requests_in_flight) for sent in state.signals] == [
        ("SIGTERM", 1),
        ("SIGTERM", 1),
        ("SIGKILL", 1),
    ]
    await at.manager.close()


async def test_held_requests_wait_and_are_served_after_the_resume(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.ask()
    state = await at.manager.hold(deadline_s=60, drain_s=0)
    assert (state.phase, at.manager.loaded) == (CoordinatorPhase.ENDED, None)
    asked = asyncio.create_task(at.ask())
    await until(lambda: len(at.manager.queue) == 1)
    assert 0 < at.manager.held_s <= 60
    at.manager.resume()
    await asked
    assert at.manager.held_s == 0
    await at.manager.close()


async def test_hold_ends_by_itself(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.manager.hold(deadline_s=0.02, drain_s=0)
    await asyncio.wait_for(at.ask(), 5)
    await at.manager.close()


async def test_hold_ends_a_load_at_once_and_its_requests_stay_in_the_queue(tmp_path: Path) -> None:
    at = bench(tmp_path)
    asked = await loading(at)
    await asyncio.wait_for(at.manager.hold(deadline_s=60, drain_s=0), 5)
    assert at.engine.process.exit is not None
    assert not asked.done()
    at.engine.healthy = True
    at.manager.resume()
    await asyncio.wait_for(asked, 5)
    assert at.manager.failures == [], "a hold is no failure"
    await at.manager.close()


async def test_hold_keeps_the_administrators_settings(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.manager.load(LoadRequest(model="a", context=512))
    await at.manager.hold(deadline_s=60, drain_s=0)
    at.manager.resume()
    await at.ask()
    assert at.planner.requests[-1].context == 512
    await at.manager.close()


async def test_administrators_load_is_not_held(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.manager.hold(deadline_s=60, drain_s=0)
    await at.manager.load(LoadRequest(model="a"))
    assert at.manager.loaded == "a"
    await at.manager.close()


async def test_hold_waits_for_answers_up_to_its_drain(tmp_path: Path) -> None:
    at = bench(tmp_path)
    async with at.manager.acquire("a"):
        hold = asyncio.create_task(at.manager.hold(deadline_s=60, drain_s=60))
        await until(lambda: at.manager.state.phase is CoordinatorPhase.STOPPING)
        assert not at.engine.process.signals
    await hold
    assert [sent.requests_in_flight for sent in at.engine.process.signals] == [0]
    await at.manager.close()


# Idle unload, stalls, shutdown.


async def test_idle_model_is_unloaded_and_loaded_again_when_it_is_asked_for(tmp_path: Path) -> None:
    at = bench(tmp_path, idle_unload_s=0.02)
    await at.ask()
    await until(lambda: at.manager.state.phase is CoordinatorPhase.ENDED)
    assert [sent.reason for sent in at.engine.process.signals] == ["idle for 0.02 s"]
    assert at.manager.failures == []
    await at.ask()
    await at.manager.close()


async def test_idle_time_is_checked_again_once_the_idle_unload_has_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that was answered while the idle unload waited for the lease keeps the model."""
    quiet_s = [0.0]
    steps: list[str] = []
    monkeypatch.setattr(CoordinatorInstance, "quiet_s", property(lambda _: quiet_s[0]))
    at = bench(tmp_path, idle_unload_s=0.01)
    at.planner.gate = asyncio.Event()
    at.planner.gate.set()
    await at.ask()
    at.planner.gate.clear()
    load = asyncio.create_task(at.manager.load(LoadRequest(model="a", context=2048)))
    await until(lambda: len(at.planner.requests) == 2)
    lease = at.manager._changes.lease
    acquire = lease.acquire

    async def note_steps() -> bool:
        steps.append("waits")
        await acquire()
        steps.append("has the lease")
        return True

    monkeypatch.setattr(lease, "acquire", note_steps)
    quiet_s[0] = 1.0
    await until(lambda: steps == ["waits"])
    quiet_s[0] = 0.0
    at.planner.gate.set()
    assert (await load).phase is CoordinatorPhase.READY
    await until(lambda: len(steps) == 2 and not lease.locked())
    assert (at.manager.loaded, at.engine.process.signals) == ("a", [])
    await at.manager.close()


async def test_stalled_coordinator_is_killed_and_loaded_again(tmp_path: Path) -> None:
    at = bench(tmp_path, suspect_s=0.01, stall_deadline_s=0.02, canary_deadline_s=0)
    await at.ask()
    at.engine.hangs = True
    async with at.manager.acquire("a") as grant:
        await asyncio.wait_for(grant.instance.ended.wait(), 15)
        at.engine.hangs = False
    assert grant.instance.failure == "backend_stalled"
    assert [sent.name for sent in at.engine.processes[0].signals] == ["SIGKILL"]
    await until(lambda: at.manager.loaded == "a")
    await at.manager.close()


async def test_shutdown_refuses_those_who_wait_and_stops_the_coordinator(tmp_path: Path) -> None:
    at = bench(tmp_path)
    asked = await loading(at)
    at.manager.begin_shutdown()
    assert (await refused(asked)).error_class == "stopping"
    assert (await refused(asyncio.create_task(at.ask()))).error_class == "stopping"
    with pytest.raises(RouterError, match="the router stops"):
        await at.manager.load(LoadRequest(model="a"))
    await at.manager.close()
    assert at.manager.closing
    assert at.engine.process.exit is not None
    assert len(at.engine.processes) == 1


async def test_shutdown_lets_answers_end_within_the_drain(tmp_path: Path) -> None:
    at = bench(tmp_path)
    async with at.manager.acquire("a"):
        at.manager.begin_shutdown()
        await until(lambda: at.manager.state.phase is CoordinatorPhase.STOPPING)
        assert not at.engine.process.signals
    await at.manager.close()
    assert [sent.reason for sent in at.engine.process.signals] == ["the router stops"]


async def test_close_is_safe_to_call_twice_and_leaves_no_task(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.ask()
    await at.manager.close()
    await at.manager.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_shutdown_waits_for_a_process_that_survives_every_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.router.coordinator.launcher._KILL_WAIT_S", 0.01)
    at = bench(tmp_path)
    at.engine.ends_at = frozenset()
    await at.ask()
    closing = asyncio.create_task(at.manager.close())
    process = at.engine.process
    await until(lambda: [sent.name for sent in process.signals] == ["SIGTERM", "SIGKILL"])
    process.die(signal.SIGKILL)
    await asyncio.wait_for(closing, 5)


async def test_starts_and_their_logs_are_kept_in_order(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.ask("a")
    await at.ask("b")
    starts = at.manager.starts
    assert [state.model for state in starts] == ["a", "b"]
    for state in starts:
        path = at.manager.log_path(state.start_id or "")
        assert path is not None
        assert path.read_text() == at.engine.log
        assert (path.parent / "start.json").exists()
    assert at.manager.log_path("another") is None
    await at.manager.close()


# Events that meet each other.


async def answering(at: Bench, started: asyncio.Event, end: asyncio.Event, model: str = "a") -> None:
    async with at.manager.acquire(model):
        started.set()
        await end.wait()


async def test_idle_unload_of_an_instance_that_cannot_be_stopped_does_not_spin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.router.coordinator.launcher._KILL_WAIT_S", 0.01)
    at = bench(tmp_path, idle_unload_s=0.05)
    at.engine.ends_at = frozenset()
    await at.ask()
    await at.manager.unload(signal="SIGKILL", deadline_s=0)
    await asyncio.wait_for(asyncio.sleep(0.1), 2)
    at.engine.process.die(signal.SIGKILL)
    await at.manager.close()


async def test_unload_comes_before_a_load_that_waited_earlier(tmp_path: Path) -> None:
    at = bench(tmp_path)
    at.engine.healthy = False
    load = asyncio.create_task(at.manager.load(LoadRequest(model="a")))
    await until(lambda: at.engine.processes != [])
    asked = asyncio.create_task(at.ask("a"))
    await until(lambda: len(at.manager.queue) == 1)
    await asyncio.wait_for(at.manager.unload(signal="SIGKILL", deadline_s=0), 5)
    assert (await refused(asked)).status == 409
    with pytest.raises(RouterError):
        await load
    assert len(at.engine.processes) == 1
    await at.manager.close()


async def test_hold_comes_before_an_administrators_load_that_waited_earlier(tmp_path: Path) -> None:
    at = bench(tmp_path)
    asked = await loading(at)
    load = asyncio.create_task(at.manager.load(LoadRequest(model="b")))
    await asyncio.sleep(0.01)
    await asyncio.wait_for(at.manager.hold(deadline_s=60, drain_s=0), 5)
    with pytest.raises(RouterError) as caught:
        await load
    assert caught.value.status == 409
    at.engine.healthy = True
    at.manager.resume()
    await asyncio.wait_for(asked, 5)
    await at.manager.close()


@pytest.mark.parametrize("first", ["hold", "unload"])
async def test_later_stop_with_a_shorter_deadline_is_not_kept_waiting(tmp_path: Path, first: str) -> None:
    at, started, end = bench(tmp_path), asyncio.Event(), asyncio.Event()
    answer = asyncio.create_task(answering(at, started, end))
    await started.wait()
    if first == "hold":
        slow = asyncio.create_task(at.manager.hold(deadline_s=900, drain_s=600))
    else:
        slow = asyncio.create_task(at.manager.unload(signal="SIGTERM", deadline_s=600))  # type: ignore[arg-type]
    await until(lambda: at.manager.state.phase is CoordinatorPhase.STOPPING)
    await asyncio.wait_for(at.manager.unload(signal="SIGKILL", deadline_s=0), 5)
    await slow
    assert at.engine.process.exit is not None
    end.set()
    await answer
    await at.manager.close()


async def test_load_that_breaks_off_leaves_no_process(tmp_path: Path) -> None:
    at = bench(tmp_path)
    asked = await loading(at)
    at.engine.process.log_path.unlink()
    error = await refused(asked)
    assert (error.status, error.error_class) == (500, "error")
    assert at.engine.process.exit is not None
    assert at.manager.state.phase is CoordinatorPhase.ENDED
    await at.manager.close()


async def test_drain_that_breaks_off_leaves_the_coordinator_ready(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.ask()

    async def broken(timeout_s: float) -> Slots | None:
        raise OSError(24, "Too many open files")

    slots, at.engine.slots = at.engine.slots, broken  # type: ignore[method-assign]
    with pytest.raises(OSError, match="Too many open files"):
        await at.manager.unload(signal="SIGTERM", deadline_s=0)
    assert at.manager.loaded == "a"
    at.engine.slots = slots  # type: ignore[method-assign]
    await at.manager.close()


class Diagnosing:
    """Holds every diagnosis of an end until the test lets it go on."""

    def __init__(self, at: Bench) -> None:
        self.gate = asyncio.Event()
        self._diagnose = at.post_mortem.diagnose
        at.post_mortem.diagnose = self._held  # type: ignore[method-assign]

    async def _held(self, instance: CoordinatorInstance) -> Diagnosis:
        await self.gate.wait()
        return await self._diagnose(instance)


async def test_administrators_load_does_not_keep_a_process_that_is_gone(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.manager.load(LoadRequest(model="a"))
    diagnosing = Diagnosing(at)
    at.engine.process.die()
    load = asyncio.create_task(at.manager.load(LoadRequest(model="a")))
    await asyncio.sleep(0.02)
    assert not load.done()
    assert at.manager.loaded is None
    diagnosing.gate.set()
    assert (await load).phase is CoordinatorPhase.READY
    assert len(at.engine.processes) == 2
    assert [failure.failure_class for failure in at.manager.failures] == ["segfault"]
    await at.manager.close()


async def test_crash_is_counted_although_a_hold_comes_during_its_diagnosis(tmp_path: Path) -> None:
    at = bench(tmp_path)
    lost = await at.loaded()
    diagnosing = Diagnosing(at)
    at.engine.process.die()
    hold = asyncio.create_task(at.manager.hold(deadline_s=60, drain_s=0))
    await asyncio.sleep(0.02)
    diagnosing.gate.set()
    await hold
    await until(lambda: at.manager.failures != [])
    assert lost.died_unexpectedly
    await at.manager.close()


async def test_requests_are_served_after_a_load_was_cancelled_during_a_diagnosis(tmp_path: Path) -> None:
    at = bench(tmp_path)
    diagnosing = Diagnosing(at)
    at.engine.healthy = False
    load = asyncio.create_task(at.manager.load(LoadRequest(model="a")))
    await until(lambda: at.engine.processes != [])
    asked = asyncio.create_task(at.ask())
    await asyncio.sleep(0.01)
    at.engine.process.die()
    await asyncio.sleep(0.02)
    load.cancel()
    at.engine.healthy = True
    diagnosing.gate.set()
    await asyncio.gather(load, return_exceptions=True)
    await asyncio.wait_for(asked, 5)
    await at.manager.close()


async def test_settings_of_a_load_that_keeps_the_instance_outlive_a_loss(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.ask()
    await at.manager.load(LoadRequest(model="a", context=2048))
    at.engine.process.die()
    await until(lambda: len(at.engine.processes) == 2)
    assert at.planner.requests[-1].context == 2048
    await at.manager.close()


async def test_load_stopped_at_its_deadline_is_killed_although_it_is_cancelled(
    tmp_path: Path,
) -> None:
    at = bench(tmp_path, load_deadline_s=0.02)
    at.engine.ends_at = frozenset({"SIGKILL"})
    at.engine.healthy = False
    load = asyncio.create_task(at.manager.load(LoadRequest(model="a")))
    await until(lambda: at.engine.processes != [] and at.engine.process.signals != [])
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    assert [sent.name for sent in at.engine.process.signals] == ["SIGTERM", "SIGKILL"]
    assert at.manager.state.phase is CoordinatorPhase.ENDED
    await at.manager.close()


async def test_close_leaves_no_timer_of_a_hold(tmp_path: Path) -> None:
    at = bench(tmp_path)
    await at.ask()
    await at.manager.hold(deadline_s=60, drain_s=0)
    await at.manager.close()
    assert at.manager._wake_up is None
