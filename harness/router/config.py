"""What the router is told: ``/etc/llama-harness/router.json``, written by the role from the inventory."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import HarnessError
from harness.monitor.redis.settings import RedisSettings
from harness.router.routing.rule import Route
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
    accelerator: str = "cpu"
    """What its rpc-server offers: the CPU's memory, or that of accelerators alone (``cuda``, ...)."""


class PoolServer(BaseModel):
    """An Ollama or OpenAI-compatible server for small models."""

    model_config = ConfigDict(extra="forbid")

    node: str
    url: str = Field(pattern=r"^https?://")
    kind: Literal["openai", "ollama"] = "openai"
    """An Ollama gets ``/api`` as it came; to others, llama-server among them, it is converted."""
    models: list[str] | None = None
    """The models it is asked for, whatever they weigh; left out, those it says it has."""
    memory_bytes: int | None = Field(None, gt=0)
    """What it can give one model; left out, what its node's monitor shows."""
    key_file: Path | None = None
    keep_alive: bool = True
    """Leave connections open for the next request. False for a llama-server: each would hold a thread."""


class RouteRule(BaseModel):
    """Which way models go whose name matches, before any other rule."""

    model_config = ConfigDict(extra="forbid")

    pattern: str
    """As in a shell: ``llama3*``."""
    route: Route


class RouterConfig(BaseModel):
    """The whole configuration; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")

    address: str
    """The head node's inventory address: the only one that is bound."""
    port: int = ROUTER_PORT
    router_key_file: Path = NODE_CONFIG / "router.key"
    admin_key_file: Path = NODE_CONFIG / "admin.key"
    models_dir: Path = NODE_MODELS
    ollama_models: Path | None = None
    """Ollama's storage on this machine; its models can be sharded too."""
    backends: list[Backend] = []
    pool: list[PoolServer] = []
    routes: list[RouteRule] = []
    """The first whose pattern matches decides."""
    large_model_bytes: int | None = Field(None, ge=0)
    """Where set, what both have goes to the coordinator from this file size on; else memory decides."""
    llama_server: Path = NODE_LLAMA_CPP / "current" / "bin" / "llama-server"
    log_dir: Path = NODE_LOGS / "coordinator"
    state_dir: Path | None = None
    """What is learned from loads and calibrations is kept here; in memory only where it is not set."""
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
    queue_limit: int = Field(512, ge=1)
    """Requests that may wait for the coordinator; one more is refused with 503 and ``Retry-After``."""
    queue_wait_s: float = Field(1800, gt=0)
    """How long one request may wait for its turn, loads included, before it is refused with 503."""
    turn_s: float = Field(10, ge=0)
    """How long a model is served while requests for another wait; as long as it loaded if that is longer."""
    switch_drain_s: float = Field(600, ge=0)
    """How long a change of model that a request asks for waits for the answers that are being given."""
    idle_unload_s: float = Field(0, ge=0)
    """Unload a model that nobody has asked for so long; 0 keeps it, as a load over the network is dear."""
    backend_wait_s: float = Field(30, ge=0)
    """How long a start waits for backends that do not answer, before it is planned without them."""
    suspect_s: float = Field(15, gt=0)
    """A request without a byte for so long makes the router look whether the coordinator still moves."""
    stall_deadline_s: float = Field(900, gt=0)
    """Nothing seen to move for so long is a stall, where the backends' nodes say nothing of themselves."""
    canary_deadline_s: float = Field(60, ge=0)
    """A coordinator started for a request gives one token first; looked at closer after so long. 0: none."""
    restart_budget: int = Field(5, ge=1)
    """Failures of the coordinator within ``restart_window_s`` after which it is not started again."""
    restart_window_s: float = Field(600, gt=0)
    keep_starts: int = Field(50, ge=1)
    """Log folders of past starts that are kept, and, below, how many bytes of them."""
    keep_log_bytes: int = Field(1024 * _MIB, ge=1)
    debug_coordinator_recovery: bool = False
    """Log each step of a recovery; so does SOLLOL_DEBUG_COORDINATOR_RECOVERY=true in the environment."""
    dashboard: bool = True
    """Serve ``/dashboard``; ``--no-dashboard`` and SOLLOL_DASHBOARD=false turn it off."""
    poll_s: float = Field(0.05, gt=0)
    """Between looks at a loading coordinator's health and log."""
    redis: RedisSettings | None = None
    """Where the nodes' samples are, read only; without it backends are judged by what the head node sees."""
    body_limit_bytes: int = 32 * _MIB
    head_limit_bytes: int = Field(64 * 1024, ge=1024)
    headers_limit: int = Field(100, ge=8)
    head_timeout_s: float = Field(10, gt=0)
    """How long a client may take to send a request's head, or, on a new connection, to begin."""
    connections_limit: int = Field(4096, ge=1)
    """Connections of clients that are open at once; one more is refused with 503."""


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
