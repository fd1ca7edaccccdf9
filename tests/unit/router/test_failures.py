"""Requests that ended a server: which are refused after, for how long, and whose key is."""

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
from harness.router.config import RouterConfig
from harness.router.errors import RouterError
from harness.router.failures import Failures
from harness.router.http.bodies import Body, BodyStore
from harness.router.http.metrics import Metrics
from harness.router.in_flight import InFlight, SentRequest, digest_of

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
    known.blame(sent(), "it was alone", [sent()])
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
    known.blame(sent(), "", [sent()])
    time.sleep(0.02)
    known.check(sent())


def test_key_that_ends_one_server_after_another_is_refused_and_other_keys_are_not() -> None:
    known, _ = failures(several_keys=True, poison_key_limit=2)
    known.blame(sent("1"), "", [sent("1")])
    known.check(sent("3"))
    known.blame(sent("2"), "", [sent("2")])
    with pytest.raises(RouterError) as caught:
        known.check(sent("3"))
    assert (caught.value.status, caught.value.error_class) == (429, "key_suspended")
    assert caught.value.retry_after_s == 600
    known.check(sent("3", key="another"))


def test_only_key_of_all_clients_is_never_refused() -> None:
    known, _ = failures(several_keys=False, poison_key_limit=1)
    known.blame(sent("1"), "", [sent("1")])
    known.check(sent("2"))


def ended(known: Failures, *requests: SentRequest, node: str | None = None) -> SentRequest | None:
    """What becomes of an end with these requests in flight."""
    if poison := known.culprit(requests, requests, node=node):
        known.blame(poison, "", requests, node=node)
    return poison


def test_of_several_requests_none_is_refused_and_the_one_at_two_ends_is() -> None:
    known, _ = failures(several_keys=True, poison_key_limit=1)
    innocent, poison = sent("innocent", key="a"), sent("poison", key="b")
    assert ended(known, poison, innocent) is None
    for request in (innocent, poison):
        known.check(request)
    assert ended(known, poison, sent("other", key="c")) is poison
    with pytest.raises(RouterError):
        known.check(poison)
    for key in "abc":
        known.check_key(key)  # the other may have ended it
    known.check(innocent)
    assert ended(known, poison) is poison
    with pytest.raises(RouterError, match="1 requests of this key"):
        known.check_key("b")


def test_end_counts_against_no_key_if_another_key_had_a_request_in_flight() -> None:
    known, _ = failures(several_keys=True, poison_key_limit=1)
    near, early = sent("near", key="victim"), sent("early", key="attacker")
    poison = known.culprit([near], [early, near])
    assert poison is near
    known.blame(poison, "", [early, near])
    assert known.culprit([sent("1"), sent("2")], [early, sent("1"), sent("2")]) is None
    for key in ("victim", "attacker", "k"):
        known.check_key(key)


def test_two_suspects_at_another_end_stay_suspects() -> None:
    known, _ = failures()
    pair = sent("1"), sent("2")
    assert ended(known, *pair) is None
    assert ended(known, *pair) is None
    assert ended(known, pair[1]) is pair[1]


def test_suspect_that_is_answered_is_none() -> None:
    known, _ = failures()
    innocent = sent("innocent")
    ended(known, innocent, sent("poison"))
    known.answered(innocent)
    assert ended(known, innocent, sent("another")) is None


def test_same_request_twice_in_flight_is_one_suspect() -> None:
    known, _ = failures()
    assert ended(known, sent("1"), sent("1")) is not None


def test_end_with_requests_of_one_key_alone_counts_against_it() -> None:
    known, _ = failures(several_keys=True, poison_key_limit=2)
    for number in range(2):
        assert ended(known, sent(f"poison {number}"), sent(f"beside {number}")) is None
    with pytest.raises(RouterError):
        known.check_key("k")


def test_samples_of_one_node_refuse_a_request_and_no_key() -> None:
    known, _ = failures(several_keys=True, poison_key_limit=1)
    for number in range(5):
        ended(known, sent(f"{number}"), node="liar")
        ended(known, sent(f"{number}"), sent(f"x{number}"), node="liar")
    with pytest.raises(RouterError):
        known.check(sent("0"))
    known.check_key("k")
    ended(known, sent("0"), node="another")
    with pytest.raises(RouterError):
        known.check_key("k")


def test_end_that_the_router_saw_itself_counts_whatever_a_node_says() -> None:
    known, _ = failures(several_keys=True, poison_key_limit=1)
    ended(known, sent("1"), sent("2", key="other"))
    ended(known, sent("1"), node="node")
    with pytest.raises(RouterError):
        known.check_key("k")


async def test_suspects_are_sent_again_one_after_the_other() -> None:
    known, _ = failures()
    one, two = sent("1"), sent("2")
    ended(known, one, two)
    async with known.turn(one) as turn:
        turn.begin()
        async with known.turn(sent("no suspect")):
            waits = asyncio.create_task(known.turn(two).__aenter__())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not waits.done()
    await asyncio.wait_for(waits, 10)


async def test_suspects_of_other_models_do_not_wait_and_the_wait_has_a_limit() -> None:
    known, _ = failures(queue_wait_s=0.01)
    one, two, other = sent("1"), sent("2"), replace(sent("3"), model="another")
    ended(known, one, two, other)
    async with known.turn(one), known.turn(other):
        with pytest.raises(RouterError) as caught:
            async with known.turn(two):
                pass
    assert (caught.value.status, caught.value.error_class) == (503, "queue_timeout")


async def test_suspect_that_takes_long_holds_the_others_for_a_time() -> None:
    known, _ = failures(suspect_s=0.001, spin_deadline_s=0.001)
    one, two = sent("1"), sent("2")
    ended(known, one, two)
    async with known.turn(one) as turn:
        turn.begin()
        async with asyncio.timeout(10), known.turn(two):
            pass


def test_what_is_kept_of_many_requests_is_bounded() -> None:
    known, _ = failures()
    for number in range(5000):
        known.blame(sent(str(number)), "", [sent(str(number))])
    assert (len(known.history), len(known._refused), len(known._suspects)) == (100, 4096, 4096)
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
