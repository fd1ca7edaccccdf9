"""What llama-server's own log says of one load: layers, and bytes on each device."""

from harness.contracts.record import Record


class BackendBuffers(Record):
    """Memory that llama-server's own log says it placed on one device."""

    device: str
    """As printed: ``RPC0[10.0.0.11:50052]``, ``CPU_Mapped``, ``CPU_REPACK``, ..."""
    node: str | None = None
    """The node behind an RPC device, once matched with the plan."""
    model_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0


class LoadReport(Record):
    """What llama-server's log says of one load."""

    offloaded: int | None = None
    layers_total: int | None = None
    buffers: list[BackendBuffers] = []
    build: int | None = None

    @property
    def distributed(self) -> bool:
        """All layers offloaded, and every RPC device that was used holds part of the model."""
        rpc = [b for b in self.buffers if b.device.startswith("RPC")]
        complete = self.offloaded is not None and self.offloaded == self.layers_total
        return complete and bool(rpc) and all(b.model_bytes > 0 for b in rpc)
