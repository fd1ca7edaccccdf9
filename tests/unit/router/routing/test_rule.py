"""Which way a model goes, as a table of facts."""

import pytest
from harness.router.config import Route, RouteRule
from harness.router.pool.server import Need, PoolOffer
from harness.router.proxy.upstream import route_header
from harness.router.routing.rule import Decision, Facts, Refusal, Sharded, choose_route

GIB = 1 << 30
NEED = Need(4 * GIB, 33)
FITS = Sharded(True, "33 layers and 4.10 GiB over 2 backends of 8.00 GiB")
TOO_LARGE = Sharded(False, "needs 4.10 GiB on the backends and they can give 2.00 GiB (b 2.00 GiB)")
UNSIZED = Sharded(None, "cannot be sized: no cache of keys and values")


def rule(pattern: str, route: Route) -> RouteRule:
    return RouteRule(pattern=pattern, route=route)


def offer(node: str = "a", capacity: int | None = None, certain: str | None = None) -> PoolOffer:
    return PoolOffer(f"http://{node}", node, certain, capacity)


def facts(*offers: PoolOffer, file: bool = True, need: Need | None = NEED, sharded: Sharded = FITS) -> Facts:
    return Facts("m", 3 * GIB if file else None, need, offers, sharded if file else None)


@pytest.mark.parametrize(
    ("known", "route", "reason"),
    [
        (facts(offer(capacity=5 * GIB)), Route.POOL, "needs 4.00 GiB (33 layers), a can give 5.00 GiB"),
        (facts(offer(capacity=4 * GIB)), Route.POOL, "needs 4.00 GiB (33 layers), a can give 4.00 GiB"),
        (
            facts(offer(capacity=4 * GIB - 1)),
            Route.COORDINATOR,
            "needs 4.00 GiB (33 layers) on one machine, pool servers can give: a 4.00 GiB; " + FITS.text,
        ),
        (facts(offer(capacity=GIB, certain="lists it")), Route.POOL, "a lists it"),
        (facts(offer(certain="has it in memory")), Route.POOL, "a has it in memory"),
        (facts(), Route.COORDINATOR, "no pool server has it; " + FITS.text),
        (facts(sharded=UNSIZED, need=None), Route.COORDINATOR, "no pool server has it; " + UNSIZED.text),
        (
            facts(offer()),
            Route.COORDINATOR,
            "needs 4.00 GiB (33 layers) on one machine, pool servers can give: a unknown; " + FITS.text,
        ),
        (
            facts(offer(), file=False),
            Route.POOL,
            "only the pool can serve it; what it can give is not known",
        ),
        (
            facts(offer(), sharded=TOO_LARGE),
            Route.POOL,
            "only the pool can serve it; what it can give is not known",
        ),
        (
            facts(offer(capacity=5 * GIB), file=False),
            Route.POOL,
            "needs 4.00 GiB (33 layers), a can give 5.00 GiB",
        ),
    ],
    ids=[
        "fits a pool server",
        "fits it to the byte",
        "one byte short",
        "listed by the operator, whatever it weighs",
        "in a server's memory",
        "no pool server has it",
        "cannot be sized",
        "no telling what the pool can give",
        "no telling, and no file",
        "no telling, and too large for the backends",
        "fits a pool server, no file",
    ],
)
def test_route_follows_from_what_each_side_can_hold(known: Facts, route: Route, reason: str) -> None:
    chosen = choose_route(known)
    assert isinstance(chosen, Decision)
    assert (chosen.route, chosen.reason) == (route, reason)


def test_only_servers_that_can_hold_it_are_asked() -> None:
    known = facts(offer("a", GIB), offer("b", 5 * GIB), offer("c", None), offer("d", certain="lists it"))
    chosen = choose_route(known)
    assert isinstance(chosen, Decision)
    assert chosen.servers == ("http://b", "http://d")


@pytest.mark.parametrize(
    ("known", "figures"),
    [
        (facts(sharded=TOO_LARGE), [TOO_LARGE.text]),
        (facts(offer(capacity=GIB), sharded=TOO_LARGE), ["4.00 GiB", "a 1.00 GiB", "they can give 2.00 GiB"]),
        (
            facts(offer(capacity=GIB), file=False),
            ["4.00 GiB", "a 1.00 GiB", "not on the head node, so no coordinator"],
        ),
    ],
    ids=["backends alone", "both", "pool alone"],
)
def test_model_that_fits_nowhere_is_refused_with_the_figures(known: Facts, figures: list[str]) -> None:
    chosen = choose_route(known)
    assert isinstance(chosen, Refusal)
    assert (chosen.status, chosen.error_class) == (507, "does_not_fit")
    assert [figure for figure in figures if figure not in chosen.message] == []


def test_model_that_nobody_has_is_unknown() -> None:
    chosen = choose_route(facts(file=False))
    assert isinstance(chosen, Refusal)
    assert chosen.status == 404


@pytest.mark.parametrize(
    ("known", "rules", "route"),
    [
        (
            facts(offer(capacity=5 * GIB)),
            [rule("m", Route.COORDINATOR)],
            Route.COORDINATOR,
        ),
        (facts(offer(capacity=GIB)), [rule("?", Route.POOL)], Route.POOL),
        (facts(sharded=TOO_LARGE), [rule("*", Route.COORDINATOR)], Route.COORDINATOR),
        (facts(), [rule("other*", Route.POOL)], Route.COORDINATOR),
        (
            facts(offer()),
            [rule("m*", Route.POOL), rule("*", Route.COORDINATOR)],
            Route.POOL,
        ),
    ],
    ids=["by name", "by pattern", "even where it does not fit", "no match", "the first match decides"],
)
def test_operators_rule_comes_first(known: Facts, rules: list[RouteRule], route: Route) -> None:
    chosen = choose_route(known, rules)
    assert isinstance(chosen, Decision)
    assert chosen.route is route
    assert ("the rule" in chosen.reason) is (rules[0].pattern != "other*")


@pytest.mark.parametrize("other", [rule("*", Route.POOL), rule("*", Route.COORDINATOR)])
def test_rule_that_sends_a_model_where_it_is_not_is_named(other: RouteRule) -> None:
    known = facts() if other.route is Route.POOL else facts(offer(), file=False)
    chosen = choose_route(known, [other])
    assert isinstance(chosen, Refusal)
    assert chosen.status == 404
    assert f"the rule '*' sends 'm' to the {other.route}" in chosen.message


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (facts(offer(capacity=GIB)), Route.COORDINATOR),
        (facts(offer(capacity=9 * GIB)), Route.COORDINATOR),
        (facts(offer(), file=False), Route.POOL),
        (facts(), Route.COORDINATOR),
    ],
)
def test_size_alone_decides_where_large_model_bytes_is_set(known: Facts, expected: Route) -> None:
    chosen = choose_route(known, large_model_bytes=3 * GIB)
    assert isinstance(chosen, Decision)
    assert chosen.route is expected
    below = choose_route(facts(offer(capacity=GIB)), large_model_bytes=3 * GIB + 1)
    assert isinstance(below, Decision)
    assert below.reason == "3221225472 bytes < large_model_bytes 3221225473"
    assert below.servers == ("http://a",)


def test_reason_becomes_a_header_whatever_the_name_holds() -> None:
    headers = route_header(Route.POOL, "the rule 'ü\r\nset-cookie: x' " + "y" * 900)
    assert headers["x-llama-route"] == "pool"
    assert len(headers["x-llama-route-reason"]) == 200
    assert headers["x-llama-route-reason"].startswith("the rule '? set-cookie: x' y")
