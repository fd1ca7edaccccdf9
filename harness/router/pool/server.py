"""One server of the pool: its models, those in memory, its load, its cool-down after a failure, its probe.

Ollama's API: https://github.com/ollama/ollama/blob/main/docs/api.md.
"""

import json
import random
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp

from harness.common.text import gib
from harness.llama.gguf import GgufModel
from harness.llama.ollama_storage import same_model
from harness.router.config import PoolServer
from harness.router.errors import RouterError
from harness.router.http.answers import LISTING_BYTES, read_answer
from harness.router.in_flight import InFlight, SentRequest

Kind = Literal["openai", "ollama"]

FIRST_COOL_DOWN_S = 1.0
LONGEST_COOL_DOWN_S = 60.0
_PROBE_S = 5.0
_BUILD = re.compile(r"b(\d{1,6})-")


@dataclass(frozen=True)
class Need:
    """What a model takes on one machine: weights, KV cache and compute buffers, in bytes."""

    bytes: int
    layers: int | None = None
    """Repeating layers and the output."""

    def __str__(self) -> str:
        layers = f" ({self.layers} layers)" if self.layers else ""
        return f"{gib(self.bytes, 2)}{layers}"


@dataclass(frozen=True)
class PoolOffer:
    """A pool server that has the model."""

    server: str
    """Its URL."""
    node: str
    certain: str | None = None
    """Why it can hold the model whatever its size: lists it, serves it, has it in memory; else None."""
    capacity_bytes: int | None = None
    """Memory that it can give a model; None where that is not known."""


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
    """The answer of ``/api/show`` in the shape of a GGUF header without tensors."""


@dataclass(frozen=True)
class PoolSnapshot:
    """One probe of a server: its models, those in memory, and the memory that they take."""

    models: tuple[PoolModel, ...]
    loaded: frozenset[str] = frozenset()
    loaded_bytes: int = 0
    build: int | None = None
    """Release number of a llama-server; None where it does not say."""


def canonical(kind: Kind, name: str) -> str:
    """A name to compare by: Ollama's ``smollm2`` is ``smollm2:latest``, elsewhere names are exact."""
    return same_model(name) if kind == "ollama" else name


@dataclass
class ServerState:
    """The state of one server."""

    config: PoolServer
    key: str | None
    snapshot: PoolSnapshot | None = None
    """None until the first probe has succeeded."""
    in_flight: int = 0
    failures: int = 0
    """In a row."""
    cooling_until: float = 0.0
    """On the monotonic clock."""
    last_failure: str = ""
    silent: bool = False
    """Its main loop answers nothing: no request is sent to it."""
    sent: InFlight = field(default_factory=InFlight)
    """The requests that it has."""
    poison: SentRequest | None = None
    """The request that caused its last end."""
    by_request: bool = False
    """A request caused its last end, whether or not it is known which."""
    ended_with: deque[SentRequest] = field(default_factory=lambda: deque(maxlen=256))
    """Requests that were in flight at an end of it."""
    judged_ns: int = field(default_factory=time.time_ns)
    """Its ends up to this moment have been looked at; UTC, nanoseconds."""
    target: PoolTarget = field(init=False)

    def __post_init__(self) -> None:
        self.target = PoolTarget(
            self.config.node, self.config.url.rstrip("/"), self.key, self.config.kind, self.config.keep_alive
        )

    @property
    def models(self) -> list[str]:
        """Names that a request can use: those of the configuration, else those that the server lists."""
        if self.config.models is not None:
            return self.config.models
        return [model.name for model in self.snapshot.models] if self.snapshot else []

    def model(self, name: str) -> PoolModel | None:
        """The server's description of one of its models."""
        wanted = canonical(self.config.kind, name)
        models = self.snapshot.models if self.snapshot else ()
        return next((model for model in models if canonical(self.config.kind, model.name) == wanted), None)

    def has(self, name: str) -> bool:
        """Whether a request for ``name`` can be sent to it."""
        wanted = canonical(self.config.kind, name)
        return any(canonical(self.config.kind, model) == wanted for model in self.models)

    def has_in_memory(self, name: str) -> bool:
        """Whether the answer can begin without a load. A llama-server always has its model loaded."""
        if self.snapshot is None:
            return False
        if self.config.kind == "openai":
            return self.has(name)
        return same_model(name) in map(same_model, self.snapshot.loaded)

    def certain(self, name: str) -> str | None:
        """Why it can hold a model whatever its size; None where the size decides."""
        if self.config.models is not None:
            return "lists it"
        if self.config.kind == "openai":
            return "serves it"
        return "has it in memory" if self.has_in_memory(name) else None

    def capacity_bytes(self, available: int | None) -> int | None:
        """Memory that it can give one model: as configured, else what its node has free and its models use.

        Args:
            available: by the node's monitor, bytes.
        """
        if self.config.memory_bytes is not None:
            return self.config.memory_bytes
        return None if available is None else available + (self.snapshot.loaded_bytes if self.snapshot else 0)

    def succeeded(self) -> None:
        self.failures, self.cooling_until, self.last_failure, self.silent = 0, 0.0, "", False

    def failed(self, now: float, reason: str, jitter: Callable[[], float] = random.random) -> None:
        """It did not answer: cool down, each time twice as long, up to a minute."""
        self.failures += 1
        self.last_failure = reason
        pause = min(LONGEST_COOL_DOWN_S, FIRST_COOL_DOWN_S * 2 ** (self.failures - 1))
        self.cooling_until = now + pause * (1 + 0.2 * jitter())


class ProbeError(Exception):
    """A probe failed; the message says what the server did instead."""


class SilentServerError(ProbeError):
    """The server takes requests, but its main loop answers none."""


async def check_main_loop(session: aiohttp.ClientSession, target: PoolTarget, patience_s: float) -> None:
    """Wait for any answer of the main loop, which alone makes tokens; a long prompt may delay it.

    llama-server answers ``/v1/models`` and ``/health`` beside its main loop, ``/slots`` from within. A server
    without ``/slots`` says so, which is an answer; so is a refused connection.

    Raises:
        SilentServerError: there was none within ``patience_s``.
    """
    path = "/slots" if target.kind == "openai" else "/"
    try:
        await _ask(session, target, path, timeout_s=patience_s)
    except aiohttp.ConnectionTimeoutError:
        return  # the connection was not accepted: ``probe`` reports that
    except TimeoutError:
        raise SilentServerError(f"its main loop has answered nothing for {patience_s:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError, RecursionError, ProbeError):
        return


async def probe(
    session: aiohttp.ClientSession, target: PoolTarget, previous: PoolSnapshot | None = None
) -> PoolSnapshot:
    """The models of a server now, and those in its memory.

    Args:
        previous: the last snapshot, whose descriptions of unchanged models are kept.

    Raises:
        ProbeError: it cannot be reached, or answers something else.
    """
    try:
        if target.kind == "openai":
            listing = await _ask(session, target, "/v1/models")
            models = tuple(PoolModel(str(entry["id"])) for entry in listing["data"])
            return PoolSnapshot(models, build=await _build(session, target))
        tags = await _ask(session, target, "/api/tags")
        running = await _ask(session, target, "/api/ps")
        described = [await _described(session, target, entry, previous) for entry in tags["models"]]
        loaded = running["models"]
        return PoolSnapshot(
            tuple(described),
            frozenset(str(entry["name"]) for entry in loaded),
            sum(int(entry.get("size", 0)) for entry in loaded),
        )
    except (aiohttp.ClientError, TimeoutError, OSError, RouterError) as error:
        raise ProbeError(repr(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProbeError(f"unexpected answer: {error!r}") from None


async def _build(session: aiohttp.ClientSession, target: PoolTarget) -> int | None:
    """From llama-server's ``/props``: ``b6751-01d2bdc2b``. Other servers do not have it."""
    try:
        found = _BUILD.match(str((await _ask(session, target, "/props"))["build_info"]))
    except (ProbeError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return int(found[1]) if found else None


async def _described(
    session: aiohttp.ClientSession, target: PoolTarget, entry: Any, previous: PoolSnapshot | None
) -> PoolModel:
    name, digest = str(entry["name"]), str(entry.get("digest", ""))
    for model in previous.models if previous else ():
        if (model.name, model.digest) == (name, digest):
            return model
    size = int(entry["size"]) if entry.get("size") else None
    description = await _ask(session, target, "/api/show", {"model": name})
    info = description.get("model_info") if isinstance(description, dict) else None
    header = None
    if isinstance(info, dict) and "general.architecture" in info and size:
        header = GgufModel(Path(name), size, info, ())
    return PoolModel(name, size, digest, header)


async def _ask(
    session: aiohttp.ClientSession,
    target: PoolTarget,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    timeout_s: float = _PROBE_S,
) -> Any:
    headers = {"authorization": f"Bearer {target.key}"} if target.key else {}
    if not target.keep_alive:
        headers["connection"] = "close"
    timeout, method = aiohttp.ClientTimeout(total=timeout_s, connect=_PROBE_S), "POST" if body else "GET"
    async with session.request(
        method, target.url + path, json=body, headers=headers, timeout=timeout
    ) as answer:
        if answer.status != 200:
            raise ProbeError(f"{path}: status {answer.status}")
        return json.loads(await read_answer(answer, LISTING_BYTES))
