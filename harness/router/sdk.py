"""``HybridRouter``: the router as an object in a script, as the founding report's programs used it."""

import asyncio
import json
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

from harness.errors import HarnessError
from harness.llama.rpc.client import RpcError, ask
from harness.llama.rpc.messages import ProtocolError
from harness.llama.rpc.sockets import connected_endpoints
from harness.router.app import create_app
from harness.router.app_drain import Drain
from harness.router.config import RouterConfig
from harness.router.embedded import EmbeddedApp, Reply
from harness.settings import NODE_MODELS, RPC_PORT

_OLLAMA_PORT = 11434


class RequestFailedError(HarnessError):
    """The router answered with an error; ``details`` has its class and, where there is one, the diagnosis."""

    def __init__(self, status: int, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.status = status
        self.details = details


class HybridRouter:
    """Small models go to the pool, large ones to a llama-server sharded over rpc-servers.

    The same parts as ``llama-router``, in this process and without a port: routing by memory, queue,
    recovery, retries. Use it as an asynchronous context manager, or call ``close`` at the end: the
    coordinator is stopped with it.

    Args:
        ollama_pool: Ollama servers: URLs, ``host:port``, dictionaries with ``host`` and ``port``, or an
            object with such ``nodes``.
        rpc_backends: as ``auto_discover_rpc_backends`` gives them, or ``host:port``. They must be idle: each
            is asked for its memory unless that is given (``total_bytes`` or ``memory_bytes``).
        debug_coordinator_recovery: log each step of a recovery; so does
            ``SOLLOL_DEBUG_COORDINATOR_RECOVERY=true``.
        models_dir: folder of ``*.gguf`` files; a model is called as its file without the ending.
        settings: anything else of the router's configuration: ``llama_server``, ``context``, ``flags``, ...
    """

    def __init__(
        self,
        ollama_pool: Any = None,
        rpc_backends: Iterable[Mapping[str, Any] | str] | None = None,
        *,
        debug_coordinator_recovery: bool = False,
        models_dir: Path | str = NODE_MODELS,
        **settings: Any,
    ) -> None:
        self._pool = [_pool_server(server) for server in _pool_servers(ollama_pool)]
        self._backends = [_endpoint(backend) for backend in rpc_backends or ()]
        self._settings = {
            "models_dir": str(models_dir),
            "debug_coordinator_recovery": debug_coordinator_recovery,
        } | settings
        self._key = secrets.token_urlsafe(32)
        self._starting = asyncio.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._app: EmbeddedApp | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start routing; ``route_request`` does so by itself.

        Raises:
            HarnessError: a setting is wrong, or a backend does not say its memory.
        """
        async with self._starting:
            if self._app is None:
                await self._start()

    async def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hybrid-router-")
        folder = Path(self._folder.name)
        for name in ("router", "admin"):
            (folder / f"{name}.key").touch(mode=0o600)
            (folder / f"{name}.key").write_text(self._key)
        given = {
            "address": "127.0.0.1",
            "router_key_file": str(folder / "router.key"),
            "admin_key_file": str(folder / "admin.key"),
            "log_dir": str(folder / "coordinator"),
            "pool": self._pool,
            "backends": [await _with_memory(backend) for backend in self._backends],
        }
        try:
            config = RouterConfig.model_validate(given | self._settings)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise HarnessError(f"HybridRouter: {where}: {first['msg']}") from None
        app = EmbeddedApp(create_app(config, Drain()))
        await app.start()
        self._app = app

    async def close(self) -> None:
        """Stop the coordinator, and forget its logs and keys."""
        if self._app is not None:
            await self._app.close()
            self._app = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    async def route_request(
        self, model: str, messages: Sequence[Mapping[str, Any]], **more: Any
    ) -> dict[str, Any]:
        """Answer a chat with whichever server the model goes to.

        Args:
            model: its name in the pool or in ``models_dir``.
            messages: as of Ollama's and OpenAI's chat: ``role`` and ``content``.
            more: other fields of Ollama's ``/api/chat``: ``options``, ``tools``, ``format``.

        Returns:
            Ollama's answer: ``message``, ``done_reason``, counts, and durations in nanoseconds; under
            ``_routing`` which way it went and why.

        Raises:
            RequestFailedError: the router's error.
        """
        body = {"model": model, "messages": list(messages), **more, "stream": False}
        reply = await self._ask("/api/chat", body)
        answer: dict[str, Any] = json.loads(b"".join([piece async for piece in reply.body]))
        return answer | {"_routing": _routing(reply)}

    async def stream_request(
        self, model: str, messages: Sequence[Mapping[str, Any]], **more: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """The same, piece by piece as Ollama streams it; the last has ``done`` true.

        Raises:
            RequestFailedError: the router's error, also in the middle.
        """
        body = {"model": model, "messages": list(messages), **more, "stream": True}
        reply = await self._ask("/api/chat", body)
        rest = b""
        async for piece in reply.body:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if line.strip():
                    yield _checked(reply.status, json.loads(line))

    async def _ask(self, path: str, body: dict[str, Any]) -> Reply:
        await self.start()
        assert self._app is not None  # noqa: S101 - start has made it
        reply = await self._app.ask(path, body, self._key)
        if reply.status >= 400:
            text = b"".join([piece async for piece in reply.body])
            _checked(reply.status, json.loads(text))
        return reply


def _checked(status: int, answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise RequestFailedError(status, str(answer["error"]), answer.get("details") or {})
    return answer


def _routing(reply: Reply) -> dict[str, str]:
    prefix = "x-llama-"
    return {name[len(prefix) :]: value for name, value in reply.headers.items() if name.startswith(prefix)}


def _pool_servers(given: Any) -> list[Any]:
    if given is None:
        return []
    if isinstance(given, str):
        return [given]
    return list(getattr(given, "nodes", given))


def _pool_server(given: Any) -> dict[str, Any]:
    """An Ollama server as the configuration has it."""
    if isinstance(given, Mapping):
        if "url" in given:
            return {"node": str(given["url"]), "kind": "ollama", **given}
        given = f"{given['host']}:{given.get('port', _OLLAMA_PORT)}"
    text = str(given)
    url = text if "://" in text else f"http://{text if ':' in text else f'{text}:{_OLLAMA_PORT}'}"
    return {"node": url, "url": url, "kind": "ollama"}


def _endpoint(given: Mapping[str, Any] | str) -> dict[str, Any]:
    """A backend as the configuration has it, its memory if it is known."""
    if isinstance(given, str):
        host, _, port = given.partition(":")
        given = {"host": host, "port": int(port or RPC_PORT)}
    endpoint = f"{given['host']}:{given.get('port', RPC_PORT)}"
    memory = given.get("memory_bytes") or given.get("total_bytes")
    return {"node": given.get("node") or endpoint, "endpoint": endpoint, "memory_bytes": memory}


async def _with_memory(backend: dict[str, Any]) -> dict[str, Any]:
    if backend["memory_bytes"]:
        return backend
    if backend["endpoint"] in connected_endpoints():
        raise HarnessError(
            f"backend {backend['endpoint']} is in use: a process of this machine is connected to it; "
            "stop that one, or give memory_bytes"
        )
    host, _, port = backend["endpoint"].partition(":")
    try:
        memory = (await ask(host, int(port))).total_bytes
    except (RpcError, ProtocolError) as error:
        raise HarnessError(
            f"backend {backend['endpoint']} does not say its memory: {error}; give memory_bytes, "
            "or use auto_discover_rpc_backends()"
        ) from None
    return backend | {"memory_bytes": memory}
