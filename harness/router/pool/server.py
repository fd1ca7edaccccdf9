"""One server of the pool: what it has, what it has in memory, how busy it is, and whether it is set aside."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from harness.llama.gguf import GgufModel
from harness.llama.ollama_storage import same_model
from harness.router.config import PoolServer

Kind = Literal["openai", "ollama"]

FIRST_ASIDE_S = 1.0
LONGEST_ASIDE_S = 60.0


@dataclass(frozen=True)
class PoolTarget:
    """Where to send a request for a small model."""

    node: str
    url: str
    key: str | None
    kind: Kind = "openai"
    keep_alive: bool = True


@dataclass(frozen=True)
class PoolModel:
    """A model as the server describes it."""

    name: str
    size_bytes: int | None = None
    digest: str = ""
    header: GgufModel | None = None
    """What ``/api/show`` says, in the shape of a GGUF header without tensors."""


@dataclass(frozen=True)
class Seen:
    """One look at a server: the models it has, and the memory that those in use take."""

    models: tuple[PoolModel, ...]
    loaded: frozenset[str] = frozenset()
    loaded_bytes: int = 0


def canonical(kind: Kind, name: str) -> str:
    """Ollama's ``smollm2`` is ``smollm2:latest``; elsewhere a name is a name."""
    return same_model(name) if kind == "ollama" else name


@dataclass
class ServerState:
    """All that the router knows of one server."""

    config: PoolServer
    key: str | None
    seen: Seen | None = None
    """None until it has answered once."""
    in_flight: int = 0
    failures: int = 0
    """In a row."""
    aside_until: float = 0.0
    """On the monotonic clock."""
    last_failure: str = ""
    target: PoolTarget = field(init=False)

    def __post_init__(self) -> None:
        self.target = PoolTarget(
            self.config.node, self.config.url.rstrip("/"), self.key, self.config.kind, self.config.keep_alive
        )

    @property
    def models(self) -> list[str]:
        """Names that can be asked for: those of the configuration, else what the server says it has."""
        if self.config.models is not None:
            return self.config.models
        return [model.name for model in self.seen.models] if self.seen else []

    def model(self, name: str) -> PoolModel | None:
        """What the server says of one of its models."""
        wanted = canonical(self.config.kind, name)
        found = self.seen.models if self.seen else ()
        return next((model for model in found if canonical(self.config.kind, model.name) == wanted), None)

    def has(self, name: str) -> bool:
        """Whether it can be asked for ``name``."""
        wanted = canonical(self.config.kind, name)
        return any(canonical(self.config.kind, model) == wanted for model in self.models)

    def has_in_memory(self, name: str) -> bool:
        """Whether the answer can begin without a load. A llama-server always holds its model."""
        if self.config.kind == "openai":
            return self.seen is not None and self.has(name)
        wanted = canonical("ollama", name)
        return self.seen is not None and wanted in {canonical("ollama", one) for one in self.seen.loaded}

    def certain(self, name: str) -> str | None:
        """Why it can surely hold a model, whatever it weighs; None where its size decides."""
        if self.config.models is not None:
            return "lists it"
        if self.config.kind == "openai":
            return "serves it"
        return "has it in memory" if self.has_in_memory(name) else None

    def capacity_bytes(self, available: int | None) -> int | None:
        """Memory that it can give one model: as configured, else what its node has left and its models hold.

        Args:
            available: what the node's monitor says, bytes.
        """
        if self.config.memory_bytes is not None:
            return self.config.memory_bytes
        return None if available is None else available + (self.seen.loaded_bytes if self.seen else 0)

    def aside(self, now: float) -> bool:
        """Whether it failed lately, so that others are asked first."""
        return now < self.aside_until

    def succeeded(self) -> None:
        """It answered."""
        self.failures, self.aside_until, self.last_failure = 0, 0.0, ""

    def failed(self, now: float, seen: str, jitter: Callable[[], float] = random.random) -> None:
        """It did not: set it aside, each time twice as long, up to a minute."""
        self.failures += 1
        self.last_failure = seen
        pause = min(LONGEST_ASIDE_S, FIRST_ASIDE_S * 2 ** (self.failures - 1))
        self.aside_until = now + pause * (1 + 0.2 * jitter())
