"""The router's configuration: ``/etc/llama-harness/router.json``, written by the role from the inventory."""

from enum import StrEnum
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.common.text import first_error
from harness.errors import HarnessError
from harness.monitor.redis import RedisSettings
from harness.settings import (
    COORDINATOR_PORT,
    NODE_CONFIG,
    NODE_LLAMA_CPP,
    NODE_LOGS,
    NODE_MODELS,
    ROUTER_PORT,
)

_MIB = 1024 * 1024


class Route(StrEnum):
    """Where a request is answered; the value of ``x-llama-route``."""

    POOL = "pool"
    COORDINATOR = "coordinator"


class Backend(BaseModel):
    """One rpc-server, in the inventory's order."""

    model_config = ConfigDict(extra="forbid")

    node: str
    endpoint: str = Field(pattern=r"^\d{1,3}(\.\d{1,3}){3}:\d+$")
    """``address:port``, the address an IPv4 literal as rpc-server wants it."""
    memory_bytes: int = Field(gt=0)
    """All memory of the node: min(MemTotal, cgroup limit), as the role read it."""
    reserve_bytes: int | None = Field(None, ge=0)
    """Left free on the node by an automatic plan; unset: the planner's default."""
    accelerator: str = "cpu"
    """Memory that its rpc-server offers: the CPU's, or only that of accelerators (``cuda``, ...)."""
    devices: list[str] = []
    """Those of a GPU host in rpc-server's order, as the inventory lists them (``CUDA0``, ``CPU``); none for
    all accelerators."""

    @property
    def address(self) -> str:
        return self.endpoint.rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])


class PoolServer(BaseModel):
    """An Ollama or OpenAI-compatible server for small models."""

    model_config = ConfigDict(extra="forbid")

    node: str
    url: str = Field(pattern=r"^https?://")
    kind: Literal["openai", "ollama"] = "openai"
    """An Ollama gets ``/api`` requests unchanged; for others, as llama-server, they are converted."""
    models: list[str] | None = None
    """The models that it serves, of any size; unset: those that it lists itself."""
    memory_bytes: int | None = Field(None, gt=0)
    """Memory for one model; unset: what its node's monitor shows."""
    key_file: Path | None = None
    keep_alive: bool = True
    """Keep connections open for the next request. False for a llama-server: each would hold a thread."""
    deployed: bool = False
    """Whether it is ``llama-pool-server.service`` of its node, whose crashes the node's samples show."""


class RouteRule(BaseModel):
    """The route of the models whose name matches; it comes before all other rules."""

    model_config = ConfigDict(extra="forbid")

    pattern: str
    """A glob, such as ``llama3*``."""
    route: Route


class RouterConfig(BaseModel):
    """The whole configuration; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")

    address: str
    """The head node's inventory address: the router listens on no other."""
    port: int = ROUTER_PORT
    router_key_file: Path = NODE_CONFIG / "router.key"
    admin_key_file: Path = NODE_CONFIG / "admin.key"
    models_dir: Path = NODE_MODELS
    ollama_models: Path | None = None
    """Ollama's storage on this machine, whose models can be sharded too."""
    backends: list[Backend] = []
    pool: list[PoolServer] = []
    routes: list[RouteRule] = []
    """The first match decides."""
    large_model_bytes: int | None = Field(None, ge=0)
    """A file of this size or more goes to the coordinator, though the pool has it; unset: memory decides."""
    llama_server: Path = NODE_LLAMA_CPP / "current" / "bin" / "llama-server"
    log_dir: Path = NODE_LOGS / "coordinator"
    state_dir: Path | None = None
    """Folder for results of loads and calibrations; unset: they are lost with the process."""
    coordinator_port: int = COORDINATOR_PORT
    context: int = 2048
    flags: list[str] = []
    """Extra llama-server flags of every start."""
    oom_score_adj: int = Field(500, ge=0, le=1000)
    """Of the coordinator: the kernel kills it before the router."""
    load_deadline_s: float = Field(900, gt=0)
    stop_deadline_s: float = Field(15, gt=0)
    """How long a signalled coordinator may take to exit before SIGKILL."""
    drain_s: float = Field(30, ge=0)
    """How long a stop of the router, or a load by an administrator, waits for requests in flight."""
    request_timeout_s: float = Field(1800, gt=0)
    queue_limit: int = Field(512, ge=1)
    """Requests that may wait for the coordinator; one more is refused with 503 and ``Retry-After``."""
    queue_wait_s: float = Field(1800, gt=0)
    """How long one request may wait in the queue, loads included, before it is refused with 503."""
    turn_s: float = Field(10, ge=0)
    """How long a model is served while requests for another wait; at least as long as its load took."""
    switch_drain_s: float = Field(600, ge=0)
    """How long a change of model for a request waits for requests in flight."""
    idle_unload_s: float = Field(0, ge=0)
    """Unload a model without requests after this time; 0 keeps it, as a load over the network is slow."""
    backend_wait_s: float = Field(30, ge=0)
    """How long a start waits for backends that do not answer before it is planned without them."""
    suspect_s: float = Field(15, gt=0)
    """After this time without a byte of an answer the router checks the coordinator for progress."""
    stall_deadline_s: float = Field(900, gt=0)
    """Time without progress that is a stall, where samples of the backends' nodes are missing."""
    canary_deadline_s: float = Field(60, ge=0)
    """A coordinator started for requests first generates one token; after this time it is checked for a
    stall. 0: no such token."""
    restart_budget: int = Field(5, ge=1)
    """Failures of the coordinator within ``restart_window_s`` after which it is not started again."""
    restart_window_s: float = Field(600, gt=0)
    spin_deadline_s: float = Field(60, gt=0)
    """How long llama-server may compute by itself, while no backend works and no token comes."""
    poison_refuse_s: float = Field(600, gt=0)
    """For how long a request that ended its server is refused."""
    poison_key_limit: int = Field(5, ge=0)
    """Servers that the requests of one key may end in ``poison_refuse_s``; then the key is refused. 0: any.
    A router with one key refuses no key."""
    pool_silent_s: float = Field(60, gt=0)
    """How long the main loop of a pool server may not answer before the router takes it for hung."""
    keep_starts: int = Field(50, ge=1)
    """Log folders of past starts that are kept."""
    keep_log_bytes: int = Field(1024 * _MIB, ge=1)
    """Size of those folders together."""
    log_bytes: int = Field(16 * _MIB, ge=_MIB)
    """Size of one coordinator's log; its beginning and its newest end are kept. A load needs it free."""
    log_line_bytes: int = Field(2048, ge=256, le=65536)
    """A longer line of that log is cut."""
    debug_coordinator_recovery: bool = False
    """Log each step of a recovery; so does SOLLOL_DEBUG_COORDINATOR_RECOVERY=true in the environment."""
    dashboard: bool = True
    """Serve ``/dashboard``; ``--no-dashboard`` and SOLLOL_DASHBOARD=false turn it off."""
    poll_s: float = Field(0.05, gt=0)
    """Between checks of a loading coordinator's health and log."""
    redis: RedisSettings | None = None
    """Where the nodes' samples are read; unset: backends are judged by what the head node sees."""
    body_limit_bytes: int = 32 * _MIB
    answer_limit_bytes: int = Field(64 * _MIB, ge=_MIB)
    """Of an answer that is not a stream; a longer one is a 502 of class ``answer_too_long``."""
    head_limit_bytes: int = Field(64 * 1024, ge=1024)
    headers_limit: int = Field(100, ge=8)
    head_timeout_s: float = Field(10, gt=0)
    """How long a client may take to send a request's head."""
    keep_alive_s: int = Field(75, ge=1)
    """How long a connection stays open without a request."""
    send_timeout_s: float = Field(60, gt=0)
    """A client that takes less than 64 KiB of what waits for it in this time is disconnected."""
    connections_limit: int = Field(4096, ge=1)
    """Client connections that are open at the same time. A further one closes an idle one, the oldest
    first, and gets 503 where none is idle."""
    connections_per_address: int = Field(0, ge=0)
    """The same for the connections of one address; 0: half of ``connections_limit``."""
    admin_reserve: int = Field(32, ge=0)
    """Connections reserved for the admin key, at most half of all: other requests get 503 before."""
    requests_per_key: int = Field(0, ge=0)
    """Requests of one router key that are in flight at the same time; 0: as ``bodies_per_key_bytes``."""
    requests_per_s_per_key: float = Field(1000, ge=0)
    """Requests a second of one router key, over several seconds; 0: no limit."""
    queue_per_key: int = Field(0, ge=0)
    """Requests of one router key that may wait for the coordinator; 0: as ``bodies_per_key_bytes``."""
    bodies_limit_bytes: int = Field(1024 * _MIB, ge=1)
    """Bodies of all requests in flight together; one larger than 1 MiB is kept in a file in ``state_dir``."""
    bodies_per_key_bytes: int = Field(0, ge=0)
    """The same for one router key; 0: half of what there is for all, and all of it for a single key."""

    @model_validator(mode="after")
    def _bodies_fit(self) -> Self:
        smallest = min(self.bodies_limit_bytes, self.bodies_per_key_bytes or self.bodies_limit_bytes // 2)
        if self.body_limit_bytes > smallest:
            raise ValueError(
                "body_limit_bytes is more than bodies_per_key_bytes, or half of bodies_limit_bytes"
            )
        return self

    @property
    def head_node(self) -> str | None:
        """Name of the node that the router and the coordinator run on; None where it has no backend."""
        own = (backend.node for backend in self.backends if backend.address == self.address)
        return next(own, None)


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
        raise HarnessError(f"{path}: {first_error(error)}; deploy again with playbooks/site.yml") from None


def read_keys(path: Path) -> list[str]:
    """The bearer keys in a file, one a line; empty lines and comments (``#``) are skipped.

    Raises:
        HarnessError: the file cannot be read, or holds no key or one of less than 16 characters.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except OSError as error:
        raise HarnessError(f"cannot read the key {path}: {error.strerror}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys or min(map(len, keys)) < 16:
        raise HarnessError(f"the key in {path} is shorter than 16 characters; deploy again to write it")
    return keys
