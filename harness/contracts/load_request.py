"""What is asked of a load, by whoever asks: the body of ``POST /admin/load``."""

from pydantic import BaseModel, ConfigDict, Field

from harness.contracts.plan import Plan


class LoadRequest(BaseModel):
    """Body of ``POST /admin/load``."""

    model_config = ConfigDict(extra="forbid")

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
