"""How fast each backend's node is, as ``harness calibrate`` measured it."""

from pydantic import BaseModel, ConfigDict, Field

from harness.planner.device_capacity import Speed


class NodeSpeed(BaseModel):
    """One node's measurement."""

    model_config = ConfigDict(extra="forbid")

    node: str
    bytes_per_s: float = Field(gt=0)
    """Bytes of weights that its backend reads per second while it decodes."""
    build: int | None
    """Build of llama.cpp that was measured."""
    sha256: str | None = None
    """Of that build's rpc-server."""
    hardware: str = ""
    """What it was measured on: processor, cores, memory limit."""
    model: str
    measured_ns: int
    tokens_per_s: list[float] = []
    """Every value that went into it."""


class Calibration(BaseModel):
    """Measurements by node; a node that was measured again replaces its earlier one."""

    model_config = ConfigDict(extra="forbid")

    nodes: list[NodeSpeed] = []

    def with_nodes(self, measured: list[NodeSpeed]) -> "Calibration":
        """This calibration and newer measurements."""
        kept = {one.node: one for one in self.nodes} | {one.node: one for one in measured}
        return Calibration(nodes=list(kept.values()))

    def speeds(self, build: int | None) -> dict[str, Speed]:
        """Speeds by node, those that were measured with ``build``: another build may be faster or slower."""
        return {one.node: Speed(one.bytes_per_s) for one in self.nodes if one.build == build}
