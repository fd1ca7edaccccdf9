"""A plan with its forecast, as the router gives it and ``harness plan`` shows it."""

from pydantic import BaseModel, ConfigDict

from harness.planner.forecast import LoadForecast
from harness.planner.plan import Plan


class Offer(BaseModel):
    """What a load would be."""

    model_config = ConfigDict(extra="forbid")

    plan: Plan
    forecast: LoadForecast
    head: str
    """The head node; empty where it has no backend."""
    tensors: dict[str, list[tuple[int, int]]] = {}
    """By node, offset and size of what its tensor cache would hold of the model's file; where asked for."""
    memory_from: dict[str, str]
    """By node, where its memory was read: ``monitor``, ``node`` (over SSH) or ``inventory``."""
