"""A plan with its forecast, as the router gives it and ``harness plan`` shows it."""

from pydantic import BaseModel, ConfigDict

from harness.contracts.plan import Plan


class LoadForecast(BaseModel):
    """What a first load will take at least. Bytes and seconds."""

    model_config = ConfigDict(extra="forbid")

    wire_bytes: dict[str, int]
    """By node, what has to cross its link."""
    wire_s: float
    hash_bytes: int
    hash_s: float
    disk_bytes: int
    disk_s: float
    load_s: float
    """The longer of reading the disk and of hashing and sending, which llama.cpp does tensor by tensor."""
    swap_bytes: dict[str, int]
    """By node, what will not fit into its memory; empty where everything does."""


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
