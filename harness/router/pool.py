"""The pool: Ollama and OpenAI-compatible servers for small models, as the configuration names them."""

from dataclasses import dataclass

from harness.router.config import PoolServer, read_key
from harness.router.errors import RouterError


@dataclass(frozen=True)
class PoolTarget:
    """Where to send a request for a small model."""

    node: str
    url: str
    key: str | None
    keep_alive: bool = True
    kind: str = "openai"
    """What it speaks: ``openai``, or ``ollama``."""


class Pool:
    """Knows which server has which model."""

    def __init__(self, servers: list[PoolServer]) -> None:
        self._targets: dict[str, PoolTarget] = {}
        for server in servers:
            key = read_key(server.key_file) if server.key_file else None
            for model in server.models:
                target = PoolTarget(server.node, server.url.rstrip("/"), key, server.keep_alive, server.kind)
                self._targets.setdefault(model, target)

    @property
    def models(self) -> list[str]:
        """Names of the models that some server has."""
        return list(self._targets)

    def target(self, model: str) -> PoolTarget:
        """The server for ``model``, which must be one of ``models``."""
        return self._targets[model]


def unreachable(target: PoolTarget, model: str, seen: str) -> RouterError:
    """The error for a pool server that does not answer."""
    return RouterError(
        502,
        "pool_unreachable",
        f"pool server of {target.node} ({target.url}) broke off for {model}: {seen}; "
        "see 'systemctl status llama-pool-server' there",
    )
