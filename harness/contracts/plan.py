"""A load: what is asked for, the plan that the router makes of it, and its forecast."""

from pydantic import Field

from harness.contracts import Record


class BackendShare(Record):
    """What the plan puts on one backend."""

    node: str
    endpoint: str
    """``address:port`` of its rpc-server."""
    device: int = 0
    """Number of the device among those of its backend; a CPU backend has one."""
    available_bytes: int
    """Memory the node can give, read on the node: min(MemAvailable, limit - resident)."""
    weight: float
    """Its number in ``--tensor-split``; layers follow it."""
    layers: int
    """Repeating layers plus the output layer placed here, as llama.cpp counts them."""
    model_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        """Memory the backend holds once the model is loaded."""
        return self.model_bytes + self.kv_bytes + self.compute_bytes

    @property
    def left_bytes(self) -> int:
        """Memory that the node has left then."""
        return self.available_bytes - self.total_bytes


class Plan(Record):
    """Explicit placement of one model over backends, in ``--rpc`` order."""

    model: str
    model_path: str
    file_bytes: int
    context: int = 2048
    parallel: int = 1
    kv_type: str = "f16"
    """``--cache-type-k`` and ``--cache-type-v``."""
    n_gpu_layers: int = 99
    """``-ngl``; 0 keeps every layer on the coordinator's CPU (the backends stay empty)."""
    layers_total: int
    """Layers that can be offloaded: repeating layers + 1, as in ``offloaded N/N``."""
    shares: list[BackendShare] = Field(min_length=1)
    notes: list[str] = []
    """What the planner decided beyond memory, for people: a node that was left out, a split by speed."""
    token_s: float | None = None
    """Forecast of the time per token, where the speed of every backend has been measured."""

    @property
    def endpoints(self) -> list[str]:
        """Backends in ``--rpc`` order, each once."""
        return list(dict.fromkeys(share.endpoint for share in self.shares))

    @property
    def distributed(self) -> bool:
        """Whether this plan puts the layers on backends at all."""
        return self.n_gpu_layers >= self.layers_total


class LoadRequest(Record):
    """Body of ``POST /admin/load``."""

    model: str
    plan: Plan | None = None
    nodes: list[str] | None = Field(None, min_length=1)
    """Backends that the automatic plan may use; all where it is left out."""
    n_gpu_layers: int | None = Field(None, ge=0)
    flags: list[str] = []
    context: int | None = Field(None, gt=0)
    parallel: int = Field(1, gt=0)
    kv_type: str = "f16"
    deadline_s: float | None = Field(None, gt=0)
    cold: bool = False
    """Drop the model's page cache on the head node first."""


class LoadForecast(Record):
    """What a first load will take at least. Bytes and seconds."""

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


class Offer(Record):
    """What a load would be."""

    plan: Plan
    forecast: LoadForecast
    head: str
    """The head node; empty where it has no backend."""
    tensors: dict[str, list[tuple[int, int]]] = {}
    """By node, offset and size of what its tensor cache would hold of the model's file; where asked for."""
    memory_from: dict[str, str]
    """By node, where its memory was read: ``monitor``, ``node`` (over SSH) or ``inventory``."""
