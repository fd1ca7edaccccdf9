"""The dashboard's login, its one feed for all viewers, and the end of a log."""

import asyncio
import time
from pathlib import Path

import pytest
from harness.contracts.coordinator_state import CoordinatorPhase, CoordinatorState, LoadTimings
from harness.router.config import RouterConfig
from harness.router.coordinator.recovery import Failure
from harness.router.dashboard.page import COOKIE, LOGIN_S, Dashboard, Feed
from harness.router.dashboard.snapshot import log_tail, outcome
from harness.router.http.auth import Gate
from harness.router.http.metrics import Metrics
from starlette.applications import Starlette
from starlette.testclient import TestClient

KEY = "the-key-of-admins-only"


def client(key: str = KEY) -> TestClient:
    async def take() -> str:
        return "{}"

    app = Starlette(routes=Dashboard(Feed(take), key).routes)
    config = RouterConfig(address="127.0.0.1")
    gate = Gate(app, router_keys=[], admin_key=key, metrics=Metrics(), config=config)
    return TestClient(gate, "https://router")


def log_in(key: str = KEY) -> str:
    """The cookie of a login."""
    answer = client().post("/dashboard/login", data={"key": key}, follow_redirects=False)
    return str(answer.cookies.get(COOKIE, ""))


def valid(cookie: str, key: str = KEY) -> bool:
    return client(key).get("/dashboard/session", headers={"cookie": f"{COOKIE}={cookie}"}).status_code == 204


def test_only_the_admin_key_logs_in_and_the_cookie_does_not_hold_it() -> None:
    cookie = log_in()
    assert valid(cookie)
    assert KEY not in cookie
    assert log_in(KEY[:-1]) == log_in("") == ""
    assert client().post("/dashboard/login", data={"key": "x"}).status_code == 401


def test_login_outlives_a_restart_and_ends_with_its_time_or_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    cookie, now = log_in(), time.time()
    assert not valid(cookie, "another-key-of-admins")
    monkeypatch.setattr("harness.router.dashboard.page.time.time", lambda: now + LOGIN_S + 1)
    assert not valid(cookie)


@pytest.mark.parametrize("cookie", ["", ".", "..", "9999999999.a.b", "x.y", "9" * 5000 + ".a"])
def test_forged_cookie_is_no_login(cookie: str) -> None:
    assert not valid(cookie)


def test_lengthened_login_is_no_login() -> None:
    expires_s, _, signature = log_in().partition(".")
    assert not valid(f"{int(expires_s) + 1}.{signature}")


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


def test_log_tail_is_bounded_and_shows_no_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_bytes(b"x" * 100_000 + b"\n" + b"line \x1b[31mred\n" * 100 + b"y" * 5000)
    lines = log_tail(path)
    assert len(lines) == 40
    assert lines[0] == "line \N{REPLACEMENT CHARACTER}[31mred"
    assert lines[-1] == "y" * 400
    assert log_tail(tmp_path / "none") == log_tail(None) == []


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
