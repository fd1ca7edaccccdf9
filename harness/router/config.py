"""What the router is told: ``/etc/llama-harness/router.json``, written by the role from the inventory."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import HarnessError
from harness.settings import (
    COORDINATOR_PORT,
    NODE_CONFIG,
    NODE_LLAMA_CPP,
    NODE_LOGS,
    NODE_MODELS,
    ROUTER_PORT,
)

_MIB = 1024 * 1024


class Backend(BaseModel):
    """One rpc-server, in the inventory's order."""

    model_config = ConfigDict(extra="forbid")

    node: str
    endpoint: str = Field(pattern=r"^\d{1,3}(\.\d{1,3}){3}:\d+$")
    """``address:port``, the address an IPv4 literal as rpc-server wants it."""
    memory_bytes: int = Field(gt=0)
    """What the node has at most: min(MemTotal, cgroup limit), as the role read it."""
    reserve_bytes: int | None = Field(None, ge=0)
    """Left free on the node by an automatic plan; the planner's own reserve where it is not set."""


class PoolServer(BaseModel):
    """An OpenAI-compatible server for small models."""

    model_config = ConfigDict(extra="forbid")

    node: str
    url: str = Field(pattern=r"^https?://")
    models: list[str]
    key_file: Path | None = None


class RouterConfig(BaseModel):
    """The whole configuration; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")

    address: str
    """The head node's inventory address: the only one that is bound."""
    port: int = ROUTER_PORT
    router_key_file: Path = NODE_CONFIG / "router.key"
    admin_key_file: Path = NODE_CONFIG / "admin.key"
    models_dir: Path = NODE_MODELS
    backends: list[Backend] = []
    pool: list[PoolServer] = []
    large_model_bytes: int = 512 * _MIB
    """A model on disk whose file is at least this large goes to the coordinator, even if the pool has it."""
    llama_server: Path = NODE_LLAMA_CPP / "current" / "bin" / "llama-server"
    log_dir: Path = NODE_LOGS / "coordinator"
    coordinator_port: int = COORDINATOR_PORT
    context: int = 2048
    flags: list[str] = []
    """Extra llama-server flags of every start."""
    oom_score_adj: int = Field(500, ge=0, le=1000)
    """Of the coordinator: the kernel ends it before it ends the router."""
    load_deadline_s: float = Field(900, gt=0)
    stop_deadline_s: float = Field(15, gt=0)
    """How long a signalled coordinator may take to exit before SIGKILL."""
    drain_s: float = Field(30, ge=0)
    """How long a stop of the router, or a change of model, waits for requests in flight."""
    request_timeout_s: float = Field(1800, gt=0)
    poll_s: float = Field(0.05, gt=0)
    """Between looks at a loading coordinator's health and log."""
    body_limit_bytes: int = 32 * _MIB


def load_config(path: Path) -> RouterConfig:
    """Read the configuration file.

    Raises:
        HarnessError: it is missing, not JSON, or a key is unknown or wrong.
    """
    try:
        return RouterConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise HarnessError(f"cannot read the router's configuration {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise HarnessError(f"{path}: {where}: {first['msg']}; deploy again with playbooks/site.yml") from None


def read_key(path: Path) -> str:
    """A bearer key from its file.

    Raises:
        HarnessError: the file cannot be read, or holds no key or one of less than 16 characters.
    """
    return read_keys(path)[0]


def read_keys(path: Path) -> list[str]:
    """The bearer keys in a file, one a line; empty lines and those that begin with ``#`` are passed over.

    Raises:
        HarnessError: as :func:`read_key`.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except OSError as error:
        raise HarnessError(f"cannot read the key {path}: {error.strerror}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys or min(map(len, keys)) < 16:
        raise HarnessError(f"the key in {path} is shorter than 16 characters; deploy again to write it")
    return keys
