"""The dashboard's login, its one feed for all viewers, and the end of a log."""

import asyncio
from pathlib import Path

import pytest
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState, LoadTimings
from harness.monitor.backend_state import BackendState, State
from harness.router.coordinator.restarts import Failure
from harness.router.dashboard.attempts import FREE, LONGEST_S, Attempts
from harness.router.dashboard.feed import Feed
from harness.router.dashboard.outcome import outcome
from harness.router.dashboard.session import LASTS_S, Sessions
from harness.router.dashboard.snapshot import shown_state
from harness.router.dashboard.tail import log_tail

KEY = "the-key-of-admins-only"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_only_the_admin_key_begins_a_session_and_its_token_does_not_hold_the_key() -> None:
    sessions = Sessions(KEY, Clock())
    token = sessions.begin(KEY)
    assert token is not None
    assert sessions.begin(KEY[:-1]) is None
    assert sessions.begin("") is None
    assert KEY not in token
    assert sessions.holds(token)


def test_session_outlives_a_restart_and_ends_with_its_time_or_its_key() -> None:
    clock = Clock()
    token = Sessions(KEY, clock).begin(KEY)
    assert token is not None
    assert Sessions(KEY, clock).holds(token)
    assert not Sessions("another-key-of-admins", clock).holds(token)
    clock.now += LASTS_S
    assert not Sessions(KEY, clock).holds(token)


@pytest.mark.parametrize("token", ["", ".", "..", "9999999999.a.b", "x.y.\xff"])
def test_forged_token_is_no_session(token: str) -> None:
    assert not Sessions(KEY, Clock()).holds(token)


def test_lengthened_session_is_no_session() -> None:
    sessions = Sessions(KEY, Clock())
    expires, rest = (sessions.begin(KEY) or "").split(".", 1)
    assert not sessions.holds(f"{int(expires) + 1}.{rest}")


async def test_all_viewers_share_one_feed_which_stops_with_the_last() -> None:
    taken = 0

    async def take() -> str:
        nonlocal taken
        taken += 1
        return str(taken)

    feed = Feed(take, period_s=3600)
    viewers = [feed.events() for _ in range(10)]
    seen = [await anext(viewer) for viewer in viewers]
    assert seen == [b"data: 1\n\n"] * 10
    for viewer in viewers[1:]:
        await viewer.aclose()
    assert feed.running
    await viewers[0].aclose()
    assert not feed.running
    assert feed.viewers == 0
    again = feed.events()
    assert await anext(again) == b"data: 2\n\n"
    feed.close()
    assert [event async for event in again] == []


async def test_viewer_is_let_go_when_no_snapshot_can_be_taken_and_the_next_one_tries_again() -> None:
    broken = True

    async def take() -> str:
        if broken:
            raise ValueError("no snapshot")
        return "well"

    feed = Feed(take)
    assert [event async for event in feed.events()] == []
    broken = False
    viewer = feed.events()
    assert await anext(viewer) == b"data: well\n\n"
    await viewer.aclose()


async def test_viewer_that_waits_is_let_go_when_the_router_stops() -> None:
    async def take() -> str:
        return "{}"

    feed = Feed(take, period_s=3600)
    viewer = feed.events()
    await anext(viewer)
    waiting = asyncio.ensure_future(anext(viewer, None))
    await asyncio.sleep(0)
    feed.close()
    assert await waiting is None


def test_backend_that_our_coordinator_holds_is_busy_where_no_monitor_can_be_asked() -> None:
    assert shown_state(None, held=True)["state"] == "busy"
    assert shown_state(None, held=False)["state"] == "unknown"
    assert shown_state(BackendState(State.BUSY, "serves 10.0.0.1"), held=False)["state"] == "busy"


def test_log_tail_is_bounded_and_shows_no_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_bytes(b"x" * 100_000 + b"\n" + b"line \x1b[31mred\n" * 100 + b"y" * 5000)
    lines = log_tail(path)
    assert len(lines) == 40
    assert lines[0] == "line \N{REPLACEMENT CHARACTER}[31mred"
    assert lines[-1] == "y" * 400
    assert log_tail(tmp_path / "none") == log_tail(None) == []


def test_client_that_fails_often_waits_longer_each_time_and_keeps_nobody_else_out() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    for _ in range(FREE):
        assert attempts.wait_s("a") == 0
        attempts.failed("a")
    assert attempts.wait_s("a") == 0
    for pause in (1, 2, 4, 8):
        attempts.failed("a")
        assert attempts.wait_s("a") == pause
        clock.now += pause
        assert attempts.wait_s("a") == 0
    assert attempts.wait_s("b") == 0
    for _ in range(100):
        attempts.failed("a")
    assert attempts.wait_s("a") == LONGEST_S
    attempts.succeeded("a")
    attempts.failed("a")
    assert attempts.wait_s("a") == 0


def test_old_failures_are_forgotten_and_their_number_is_bounded() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    for _ in range(FREE + 3):
        attempts.failed("a")
    clock.now += 3600
    attempts.failed("a")
    assert attempts.wait_s("a") == 0
    for number in range(2000):
        attempts.failed(f"10.0.0.{number}")
    assert len(attempts._failures) <= 1024


SECOND = 10**9
LOST = Failure(
    time_ns=100 * SECOND, start_id="x", model="m", failure_class="backend_lost", message="it ended"
)


def started(at_s: int, ready_s: int | None = None, **state: object) -> CoordinatorState:
    timings = LoadTimings(requested_ns=at_s * SECOND, ready_ns=ready_s and ready_s * SECOND)
    given = {"phase": CoordinatorPhase.ENDED, "model": "m", "timings": timings} | state
    return CoordinatorState.model_validate(given)


@pytest.mark.parametrize(
    ("starts", "said"),
    [
        ([], "not started again since"),
        ([started(90, 95)], "not started again since"),
        ([started(101, 103, model="other")], "not started again since"),
        ([started(90, 95), started(101, 112)], "started again: ready 12.0 s after the failure"),
        ([started(101, phase=CoordinatorPhase.STARTING)], "is being started again"),
        ([started(101)], "started again: failed (unknown)"),
    ],
)
def test_failure_is_shown_with_what_came_of_it(starts: list[CoordinatorState], said: str) -> None:
    assert outcome(LOST, starts) == said
