"""A load: what is asked for, the plan that the router makes of it, and its forecast."""

from typing import Annotated, Literal

from pydantic import Field

from harness.contracts import Record

MAX_RPC_DEVICES = 15
"""RPC devices that one coordinator can use: its scheduler takes 16 (GGML_SCHED_MAX_BACKENDS), counts its own
CPU too and aborts above that (observed with builds 6751 and 11549)."""

KvType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
"""``kv_cache_types`` of llama.cpp's common/arg.cpp, builds 6666 to 11549."""
Context = Annotated[int, Field(ge=1, le=1 << 24)]
"""Tokens; far more than any model has been trained for."""
Slots = Annotated[int, Field(ge=1, le=256)]
"""``LLAMA_MAX_SEQ`` of the newest builds."""
Layers = Annotated[int, Field(ge=0, le=1 << 16)]
Bytes = Annotated[int, Field(ge=0, le=1 << 60)]


class BackendShare(Record):
    """What the plan puts on one backend."""

    node: str
    endpoint: str = Field(pattern=r"^[A-Za-z0-9._-]{1,253}:[0-9]{1,5}$")
    """``address:port`` of its rpc-server."""
    device: int = Field(0, ge=0, lt=MAX_RPC_DEVICES)
    """Number of the device among those of its backend; a CPU backend has one."""
    available_bytes: Annotated[int, Field(ge=-(1 << 60), le=1 << 60)]
    """Memory the node can give, read on the node: min(MemAvailable, limit - resident)."""
    weight: float = Field(ge=0, le=1e9, allow_inf_nan=False)
    """Its number in ``--tensor-split``; layers follow it."""
    layers: Layers
    """Repeating layers plus the output layer placed here, as llama.cpp counts them."""
    model_bytes: Bytes
    kv_bytes: Bytes
    compute_bytes: Bytes

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
    file_bytes: Bytes
    context: Context = 2048
    parallel: Slots = 1
    kv_type: KvType = "f16"
    """``--cache-type-k`` and ``--cache-type-v``."""
    n_gpu_layers: Layers = 99
    """``-ngl``; 0 keeps every layer on the coordinator's CPU (the backends stay empty)."""
    layers_total: Layers
    """Layers that can be offloaded: repeating layers + 1, as in ``offloaded N/N``."""
    shares: list[BackendShare] = Field(min_length=1, max_length=MAX_RPC_DEVICES)
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

    @property
    def contradiction(self) -> str | None:
        """Which of its sums do not agree; None where all do."""
        placed = sum(share.layers for share in self.shares)
        offloaded = min(self.n_gpu_layers, self.layers_total)
        if placed != offloaded:
            return f"its shares have {placed} layers, and {offloaded} are to be offloaded"
        if offloaded and not sum(share.weight for share in self.shares):
            return "its shares have no weight"
        devices = [(share.endpoint, share.device) for share in self.shares]
        return "a device has two shares" if len(set(devices)) < len(devices) else None


class LoadRequest(Record):
    """Body of ``POST /admin/load``."""

    model: str
    plan: Plan | None = None
    nodes: list[str] | None = Field(None, min_length=1)
    """Backends that the automatic plan may use; all where it is left out."""
    n_gpu_layers: Layers | None = None
    flags: list[str] = []
    context: Context | None = None
    parallel: Slots = 1
    kv_type: KvType = "f16"
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
