"""The routing rule: which way a model goes. A function of facts, never of a model's name.

A model goes to the pool where one of its servers can hold it, else to the coordinator where the backends
can, else nowhere. An operator's rule for a name or a pattern comes first, then what the coordinator has
loaded, then ``large_model_bytes``, if set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase


class Route(StrEnum):
    """Where a request is answered; the value of ``x-llama-route``."""

    POOL = "pool"
    COORDINATOR = "coordinator"


@dataclass(frozen=True)
class Need:
    """What a model takes on one machine: weights, KV cache and compute buffers, in bytes."""

    bytes: int
    layers: int | None = None
    """Repeating layers and the output."""

    def __str__(self) -> str:
        layers = f" ({self.layers} layers)" if self.layers else ""
        return f"{gib(self.bytes)}{layers}"


@dataclass(frozen=True)
class Offer:
    """A pool server that has the model."""

    server: str
    """Its URL."""
    node: str
    certain: str | None = None
    """Why it surely can hold it: lists it, serves it, has it in memory; None where sizes decide."""
    capacity_bytes: int | None = None
    """Memory that it can give a model; None where that is not known."""


@dataclass(frozen=True)
class Sharded:
    """What the planner says of the model over all backends."""

    fits: bool | None
    """None where the planner cannot size it: the load itself will tell."""
    text: str


@dataclass(frozen=True)
class Facts:
    """All that decides about one model."""

    model: str
    file_bytes: int | None = None
    """Size of its file on the head node; None where there is none, and so no coordinator for it."""
    need: Need | None = None
    offers: tuple[Offer, ...] = ()
    sharded: Sharded | None = None
    name: str = ""
    """As the head node lists it, however it was asked for; empty where it has no file."""
    loaded: bool = False
    """The coordinator has it, ready to answer."""


@dataclass(frozen=True)
class Rule:
    """What an operator wants for the models whose names match."""

    pattern: str
    """As in a shell: ``llama3*``."""
    route: Route


@dataclass(frozen=True)
class Decision:
    """A route, and the fact that decided it."""

    route: Route
    reason: str
    servers: tuple[str, ...] = ()
    """URLs of the pool servers that may be asked."""
    model: str = ""
    """What the head node calls the model: one name for all spellings of it."""


@dataclass(frozen=True)
class Refusal:
    """No way for this model: an HTTP status, a class for programs, the figures for people."""

    status: int
    error_class: str
    message: str


def choose_route(
    facts: Facts, rules: Sequence[Rule] = (), *, large_model_bytes: int | None = None
) -> Decision | Refusal:
    """Pool, coordinator, or neither for one model.

    Args:
        facts: what is known of it.
        rules: the operator's; the first whose pattern matches decides.
        large_model_bytes: where set, a model that both sides have goes by its file's size alone.
    """
    if facts.file_bytes is None and not facts.offers:
        return Refusal(404, "unknown_model", f"no model '{facts.model}'")
    if rule := next((one for one in rules if _is_for(one, facts.model)), None):
        return _by_rule(facts, rule)
    if facts.loaded:
        return Decision(Route.COORDINATOR, "the coordinator has it loaded")
    everywhere = tuple(offer.server for offer in facts.offers)
    if large_model_bytes is not None and facts.file_bytes is not None and facts.offers:
        large = facts.file_bytes >= large_model_bytes
        reason = f"{facts.file_bytes} bytes {'>=' if large else '<'} large_model_bytes {large_model_bytes}"
        return Decision(Route.COORDINATOR, reason) if large else Decision(Route.POOL, reason, everywhere)
    return _by_memory(facts)


def _is_for(rule: Rule, model: str) -> bool:
    """Whether a rule's pattern matches; ``x`` and ``x:latest`` are one model, as to Ollama."""
    bare = model.removesuffix(":latest")
    names = {model} if ":" in bare.rpartition("/")[2] else {bare, f"{bare}:latest"}
    return any(fnmatchcase(name, rule.pattern) for name in names)


def _by_rule(facts: Facts, rule: Rule) -> Decision | Refusal:
    reason = f"the rule '{rule.pattern}' sends it there"
    if rule.route is Route.COORDINATOR:
        if facts.file_bytes is None:
            return Refusal(
                404, "unknown_model", f"{_sent(facts, rule)}, but its file is not on the head node"
            )
        return Decision(Route.COORDINATOR, reason)
    if not facts.offers:
        return Refusal(404, "unknown_model", f"{_sent(facts, rule)}, where no server has it")
    return Decision(Route.POOL, reason, tuple(offer.server for offer in facts.offers))


def _sent(facts: Facts, rule: Rule) -> str:
    return f"the rule '{rule.pattern}' sends '{facts.model}' to the {rule.route}"


def _by_memory(facts: Facts) -> Decision | Refusal:
    if fitting := [offer for offer in facts.offers if _fits(offer, facts.need)]:
        return Decision(Route.POOL, _pool_reason(fitting[0], facts), tuple(o.server for o in fitting))
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


def _fits(offer: Offer, need: Need | None) -> bool:
    if offer.certain:
        return True
    return need is not None and offer.capacity_bytes is not None and need.bytes <= offer.capacity_bytes


def _pool_reason(offer: Offer, facts: Facts) -> str:
    if offer.certain:
        return f"{offer.node} {offer.certain}"
    return f"needs {facts.need}, {offer.node} can give {gib(offer.capacity_bytes or 0)}"


def _too_small(facts: Facts) -> str:
    each = ", ".join(
        f"{o.node} {'unknown' if o.capacity_bytes is None else gib(o.capacity_bytes)}" for o in facts.offers
    )
    return f"needs {facts.need or 'an unknown amount'} on one machine, pool servers can give: {each}"


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / (1 << 30):.2f} GiB"
