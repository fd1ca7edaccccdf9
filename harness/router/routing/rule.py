"""The routing rule: a function of facts about a model, never of its name alone.

A model goes to the pool where one of its servers can hold it, else to the coordinator where the backends
can, else nowhere. An operator's rule for a name or a pattern comes first, then what the coordinator has
loaded, then ``large_model_bytes``, if set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from harness.common.text import gib
from harness.router.config import Route, RouteRule
from harness.router.errors import UNKNOWN_MODEL
from harness.router.pool.server import Need, PoolOffer


@dataclass(frozen=True)
class Sharded:
    """The planner's answer for the model over all backends."""

    fits: bool | None
    """None where the planner cannot size it: only the load itself will show."""
    text: str


@dataclass(frozen=True)
class Facts:
    """All facts that decide the route of one model."""

    model: str
    file_bytes: int | None = None
    """Size of its file on the head node; None where there is none, and so no coordinator for it."""
    need: Need | None = None
    offers: tuple[PoolOffer, ...] = ()
    sharded: Sharded | None = None
    name: str = ""
    """As the head node lists it, however the client spells it; empty where it has no file."""
    loaded: bool = False
    """The coordinator has it, ready to answer."""


@dataclass(frozen=True)
class Decision:
    """A route, and the reason for it."""

    route: Route
    reason: str
    servers: tuple[str, ...] = ()
    """URLs of the pool servers that may serve it."""
    model: str = ""
    """The head node's name of the model: one for all spellings of it."""


@dataclass(frozen=True)
class Refusal:
    """No route: an HTTP status, a class for programs, the figures for people."""

    status: int
    error_class: str
    message: str


def choose_route(
    facts: Facts, rules: Sequence[RouteRule] = (), *, large_model_bytes: int | None = None
) -> Decision | Refusal:
    """Pool, coordinator, or neither for one model.

    Args:
        rules: the operator's; the first matching pattern decides.
        large_model_bytes: where set, a model that both sides have goes by its file's size alone.
    """
    if facts.file_bytes is None and not facts.offers:
        return Refusal(404, UNKNOWN_MODEL, f"no model '{facts.model}'")
    if rule := next((rule for rule in rules if _matches(rule, facts.model)), None):
        return _by_rule(facts, rule)
    if facts.loaded:
        return Decision(Route.COORDINATOR, "the coordinator has it loaded")
    everywhere = tuple(offer.server for offer in facts.offers)
    if large_model_bytes is not None and facts.file_bytes is not None and facts.offers:
        large = facts.file_bytes >= large_model_bytes
        reason = f"{facts.file_bytes} bytes {'>=' if large else '<'} large_model_bytes {large_model_bytes}"
        return Decision(Route.COORDINATOR, reason) if large else Decision(Route.POOL, reason, everywhere)
    return _by_memory(facts)


def _matches(rule: RouteRule, model: str) -> bool:
    """Whether a rule's pattern matches; ``x`` and ``x:latest`` are one model, as to Ollama."""
    bare = model.removesuffix(":latest")
    names = {model} if ":" in bare.rpartition("/")[2] else {bare, f"{bare}:latest"}
    return any(fnmatchcase(name, rule.pattern) for name in names)


def _by_rule(facts: Facts, rule: RouteRule) -> Decision | Refusal:
    sent = f"the rule '{rule.pattern}' sends '{facts.model}' to the {rule.route}"
    servers = tuple(offer.server for offer in facts.offers) if rule.route is Route.POOL else ()
    if rule.route is Route.POOL and not servers:
        return Refusal(404, UNKNOWN_MODEL, f"{sent}, where no server has it")
    if rule.route is Route.COORDINATOR and facts.file_bytes is None:
        return Refusal(404, UNKNOWN_MODEL, f"{sent}, but its file is not on the head node")
    return Decision(rule.route, f"the rule '{rule.pattern}' sends it there", servers)


def _by_memory(facts: Facts) -> Decision | Refusal:
    if fitting := [offer for offer in facts.offers if _fits(offer, facts.need)]:
        node, capacity = fitting[0].node, gib(fitting[0].capacity_bytes or 0, 2)
        certain = fitting[0].certain
        reason = f"{node} {certain}" if certain else f"needs {facts.need}, {node} can give {capacity}"
        return Decision(Route.POOL, reason, tuple(offer.server for offer in fitting))
    sharded = facts.sharded if facts.file_bytes is not None else None
    if sharded and sharded.fits is not False:
        why_not = f"{_too_small(facts)}; " if facts.offers else "no pool server has it; "
        return Decision(Route.COORDINATOR, why_not + sharded.text)
    unknown = tuple(o.server for o in facts.offers if o.capacity_bytes is None or facts.need is None)
    if unknown:
        return Decision(Route.POOL, "only the pool can serve it; what it can give is not known", unknown)
    parts = [_too_small(facts)] if facts.offers else []
    parts.append(sharded.text if sharded else "its file is not on the head node, so no coordinator for it")
    return Refusal(507, "does_not_fit", f"model '{facts.model}' fits nowhere: {'; '.join(parts)}")


def _fits(offer: PoolOffer, need: Need | None) -> bool:
    if offer.certain:
        return True
    return need is not None and offer.capacity_bytes is not None and need.bytes <= offer.capacity_bytes


def _too_small(facts: Facts) -> str:
    sizes = ((offer.node, offer.capacity_bytes) for offer in facts.offers)
    each = ", ".join(f"{node} {'unknown' if size is None else gib(size, 2)}" for node, size in sizes)
    return f"needs {facts.need or 'an unknown amount'} on one machine, pool servers can give: {each}"
