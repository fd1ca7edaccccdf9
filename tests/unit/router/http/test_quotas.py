"""What one key may have of the router, and what is left to others."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness.errors import HarnessError
from harness.router.config import RouterConfig, load_config
from harness.router.errors import RouterError
from harness.router.http.metrics import Metrics
from harness.router.http.quotas import ADMIN, NO_KEY, Quotas, RequestUsage

ONE, OTHER = "router-1", "router-2"
KIB = 1024


def quotas(keys: int = 2, **settings: Any) -> Quotas:
    return Quotas(RouterConfig(address="127.0.0.1", **settings), keys, Metrics())


def refused(work: Callable[[], Any]) -> tuple[int, str, int | None]:
    with pytest.raises(RouterError) as error:
        work()
    return error.value.status, error.value.error_class, error.value.retry_after_s


def test_key_with_its_requests_in_flight_leaves_the_rest_to_others() -> None:
    limits = quotas(connections_limit=6, admin_reserve=2)
    first = limits.begin(ONE)
    limits.begin(ONE)
    assert refused(lambda: limits.begin(ONE)) == (429, "too_many_requests_of_key", 1)
    limits.begin(OTHER)
    limits.begin(NO_KEY)
    assert refused(lambda: limits.begin(OTHER)) == (503, "too_many_requests", 1)
    for _ in range(8):
        limits.begin(ADMIN)
    first.end()
    limits.begin(OTHER)


def test_only_key_may_have_all() -> None:
    limits = quotas(keys=1, connections_limit=6, admin_reserve=2)
    for _ in range(4):
        limits.begin(ONE)
    assert refused(lambda: limits.begin(ONE))[1] == "too_many_requests"


def test_requests_without_a_key_have_half_also_beside_an_only_key() -> None:
    limits = quotas(keys=1, connections_limit=6, admin_reserve=2)
    for _ in range(2):
        limits.begin(NO_KEY)
    assert refused(lambda: limits.begin(NO_KEY))[1] == "too_many_requests_of_key"
    limits.begin(ONE)


def test_limit_of_a_key_that_is_set_holds_for_the_only_key_too() -> None:
    limits = quotas(keys=1, requests_per_key=1)
    limits.begin(ONE)
    assert refused(lambda: limits.begin(ONE))[1] == "too_many_requests_of_key"


def test_rate_of_a_key_is_its_own() -> None:
    limits = quotas(requests_per_s_per_key=0.2)  # one request in five seconds
    limits.begin(ONE).end()
    assert refused(lambda: limits.begin(ONE)) == (429, "too_many_requests_a_second", 1)
    limits.begin(OTHER).end()
    for _ in range(9):
        limits.begin(ADMIN).end()


def test_rate_of_zero_is_no_limit() -> None:
    limits = quotas(requests_per_s_per_key=0)
    for _ in range(20_000):
        limits.begin(ONE).end()


def test_key_cannot_fill_the_queue() -> None:
    limits = quotas(queue_limit=4)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(limits.begin(ONE).queued())
        assert refused(lambda: stack.enter_context(limits.begin(ONE).queued()))[:2] == (
            429,
            "queue_full_for_key",
        )
        stack.enter_context(limits.begin(OTHER).queued())
    with limits.begin(ONE).queued():
        pass


def test_queue_that_an_only_key_has_for_itself_is_full_for_all() -> None:
    limits = Quotas(RouterConfig(address="127.0.0.1", queue_limit=2), 1, Metrics())
    with ExitStack() as stack:
        for _ in range(3):  # the queue itself refuses the third, with 503
            stack.enter_context(limits.begin(ONE).queued())


async def taken(usage: RequestUsage, size: int) -> None:
    body = usage.new_body()
    await body.append(b"x" * size)


async def test_bodies_have_one_budget_and_a_key_has_its_share() -> None:
    limits = quotas(body_limit_bytes=KIB, bodies_limit_bytes=10 * KIB, bodies_per_key_bytes=6 * KIB)
    first, second = limits.begin(ONE), limits.begin(OTHER)
    await taken(first, 6 * KIB)
    with pytest.raises(RouterError) as of_key:
        await taken(limits.begin(ONE), 1)
    assert (of_key.value.status, of_key.value.error_class) == (429, "bodies_full_for_key")
    await taken(second, 4 * KIB)
    with pytest.raises(RouterError) as of_all:
        await taken(second, 1)
    assert (of_all.value.status, of_all.value.error_class) == (503, "bodies_full")
    assert of_all.value.retry_after_s
    await taken(limits.begin(ADMIN), KIB)
    first.end()
    await taken(second, 1)


async def test_answers_that_wait_for_their_clients_leave_room_for_requests() -> None:
    limits = quotas(keys=1, body_limit_bytes=KIB, bodies_limit_bytes=4 * KIB)
    first = limits.begin(ONE)
    await first.new_body(answer=True).append(b"x" * 2 * KIB)
    with pytest.raises(RouterError):
        await first.new_body(answer=True).append(b"x")
    await taken(limits.begin(ONE), 2 * KIB)


def test_body_that_no_budget_can_hold_is_refused_in_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "router.json"
    path.write_text('{"address": "127.0.0.1", "body_limit_bytes": 2048, "bodies_limit_bytes": 1024}')
    with pytest.raises(HarnessError, match="body_limit_bytes is more than"):
        load_config(path)
