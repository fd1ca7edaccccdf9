"""The routing rule: which way a model goes. A function of facts, never of a model's name."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum


class Route(StrEnum):
    """Where a request is answered; the value of ``x-llama-route``."""

    POOL = "pool"
    COORDINATOR = "coordinator"


@dataclass(frozen=True)
class Decision:
    """A route, and the fact that decided it."""

    route: Route
    reason: str


def choose_route(
    model: str, *, file_bytes: int | None, pool_models: Collection[str], large_model_bytes: int
) -> Decision | None:
    """Pool or coordinator for ``model``; None where nobody has it.

    Args:
        file_bytes: size of its file in the models folder; None where there is none.
        pool_models: models that the pool's servers hold.
        large_model_bytes: from this size on, a model is large.
    """
    in_pool = model in pool_models
    if file_bytes is None:
        return Decision(Route.POOL, "only the pool has it") if in_pool else None
    if not in_pool:
        return Decision(Route.COORDINATOR, "no pool server has it")
    if file_bytes >= large_model_bytes:
        return Decision(Route.COORDINATOR, f"{file_bytes} bytes >= large_model_bytes {large_model_bytes}")
    return Decision(Route.POOL, f"{file_bytes} bytes < large_model_bytes {large_model_bytes}")
