"""Requests that ended a server: which are refused after, for how long, and whose key is."""

import time
from pathlib import Path

import pytest
from harness.router.config import RouterConfig
from harness.router.errors import RouterError
from harness.router.failures import Failures, InFlight, SentRequest, digest_of
from harness.router.http.bodies import Body, BodyStore
from harness.router.http.metrics import Metrics

S = 10**9


def sent(digest: str = "d", *, key: str = "k", at_s: float = 1) -> SentRequest:
    return SentRequest(f"id-{digest}", key, digest, "m", int(at_s * S))


def failures(*, several_keys: bool = False, **config: float) -> tuple[Failures, Metrics]:
    metrics = Metrics()
    settings = RouterConfig.model_validate({"address": "127.0.0.1", **config})
    return Failures(settings, metrics, several_keys=several_keys), metrics


def test_request_that_ended_a_server_is_refused_and_named_and_others_are_not() -> None:
    known, metrics = failures()
    known.check(sent())
    known.blame(sent(), "it was alone")
    with pytest.raises(RouterError) as caught:
        known.check(sent())
    error = caught.value
    assert (error.status, error.error_class) == (400, "poison_request"), (
        "a client must not repeat it by itself"
    )
    assert "refused for 600 s (digest d)" in error.message
    known.check(sent("other"))
    (failure,) = known.history
    assert (failure.failure_class, failure.request_id, failure.key, failure.digest) == (
        "poison_request", "id-d", "k", "d",
    )  # fmt: skip
    page = metrics.page("")[0].decode()
    assert 'llama_router_poison_requests_total{key="k"} 1.0' in page
    assert "llama_router_poison_refusals_total 1.0" in page


def test_refusal_ends() -> None:
    known, _ = failures(poison_refuse_s=0.01)
    known.blame(sent(), "")
    time.sleep(0.02)
    known.check(sent())


def test_key_that_ends_one_server_after_another_is_refused_and_other_keys_are_not() -> None:
    known, _ = failures(several_keys=True, poison_key_limit=2)
    known.blame(sent("1"), "")
    known.check(sent("3"))
    known.blame(sent("2"), "")
    with pytest.raises(RouterError) as caught:
        known.check(sent("3"))
    assert (caught.value.status, caught.value.error_class) == (429, "key_suspended")
    assert caught.value.retry_after_s == 600
    known.check(sent("3", key="another"))


def test_only_key_of_all_clients_is_never_refused() -> None:
    known, _ = failures(several_keys=False, poison_key_limit=1)
    known.blame(sent("1"), "")
    known.check(sent("2"))


def test_what_is_kept_of_many_requests_is_bounded() -> None:
    known, _ = failures()
    for number in range(5000):
        known.blame(sent(str(number)), "")
    assert (len(known.history), len(known._refused)) == (100, 4096)
    with pytest.raises(RouterError):
        known.check(sent("4999"))


async def test_digest_is_of_path_and_body_in_memory_or_in_a_file(tmp_path: Path) -> None:
    async def digest(path: str, data: bytes) -> str:
        body = Body(BodyStore(tmp_path), lambda _: None)
        await body.append(data)
        await body.complete()
        return await digest_of(path, body)

    large = b"x" * 3_000_000
    assert await digest("/a", b"x") == await digest("/a", b"x")
    assert await digest("/a", large) == await digest("/a", large)
    assert (
        len({await digest(p, d) for p, d in [("/a", b"x"), ("/b", b"x"), ("/a", b"y"), ("/a", large)]}) == 4
    )


def test_server_has_the_requests_sent_before_and_those_whose_clients_have_just_left() -> None:
    flight, now_ns = InFlight(), time.time_ns()
    first, second, third = (SentRequest(name, "k", name, "m", now_ns + n) for n, name in enumerate("abc"))
    for request in (second, first, third):
        flight.add(request)
    assert flight.at(now_ns + 1) == [first, second]
    flight.end(first, answered=True)
    flight.end(second)
    assert flight.at(now_ns + 2) == [second, third]
    assert flight.at(now_ns + 100 * S) == [third], "a client that left long ago is no suspect"
