"""The plan: the router starts a coordinator from it, and a trial is checked against it."""

from pydantic import BaseModel, ConfigDict, Field


class BackendShare(BaseModel):
    """What the plan puts on one backend."""

    model_config = ConfigDict(extra="forbid")

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


class Plan(BaseModel):
    """Explicit placement of one model over backends, in ``--rpc`` order."""

    model_config = ConfigDict(extra="forbid")

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
