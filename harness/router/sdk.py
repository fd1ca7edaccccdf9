"""``HybridRouter``: the router inside a script, as the founding report's programs used it."""

import asyncio
import json
import secrets
import tempfile
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import uvicorn
from pydantic import ValidationError

from harness.common.sockets import connected_endpoints
from harness.common.text import first_error
from harness.errors import HarnessError
from harness.llama.rpc.client import RpcError, ask
from harness.router.app import Drain, create_app
from harness.router.config import RouterConfig
from harness.settings import NODE_MODELS, RPC_PORT

_OLLAMA_PORT = 11434
_CHAT = "http://router/api/chat"
_ROUTING = "x-llama-"


class RequestFailedError(HarnessError):
    """The router answered with an error; ``details`` has its class and, where there is one, the diagnosis."""

    def __init__(self, status: int, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.status = status
        self.details = details


class HybridRouter:
    """Small models go to the pool, large ones to a llama-server sharded over rpc-servers.

    The service ``llama-router`` in this event loop, on a Unix socket instead of a port. Use it as an
    asynchronous context manager, or call ``close`` at the end, which stops the coordinator too.

    Args:
        ollama_pool: Ollama servers: URLs, ``host:port``, dictionaries with ``host`` and ``port``, or an
            object with such ``nodes``.
        rpc_backends: as ``auto_discover_rpc_backends`` gives them, or ``host:port``. They must be idle: each
            is asked for its memory unless ``total_bytes`` or ``memory_bytes`` says it.
        debug_coordinator_recovery: log each step of a recovery; so does
            ``SOLLOL_DEBUG_COORDINATOR_RECOVERY=true``.
        models_dir: folder of ``*.gguf`` files; a model is called as its file without the ending.
        settings: other keys of the router's configuration: ``llama_server``, ``context``, ``flags``, ...
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
        servers = getattr(ollama_pool, "nodes", ollama_pool)
        servers = [servers] if isinstance(servers, str) else servers
        self._pool = [_pool_server(server) for server in servers or ()]
        self._backends = [_backend(backend) for backend in rpc_backends or ()]
        recovery = {"debug_coordinator_recovery": debug_coordinator_recovery}
        self._settings = {"models_dir": str(models_dir)} | recovery | settings
        self._starting = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._running = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Start routing; the first request does so by itself.

        Raises:
            HarnessError: a setting is wrong, or a backend does not say its memory.
        """
        await self._started()

    async def close(self) -> None:
        """Stop the coordinator, and delete its logs and keys."""
        self._session = None
        await self._running.aclose()

    async def route_request(
        self, model: str, messages: Sequence[Mapping[str, Any]], **more: Any
    ) -> dict[str, Any]:
        """Answer a chat with the server that the model is routed to.

        Args:
            model: its name in the pool or in ``models_dir``.
            messages: as of Ollama's and OpenAI's chat: ``role`` and ``content``.
            more: other fields of Ollama's ``/api/chat``: ``options``, ``tools``, ``format``.

        Returns:
            Ollama's answer: ``message``, ``done_reason``, counts, and durations in nanoseconds; under
            ``_routing`` its route and the reason.

        Raises:
            RequestFailedError: the router's error.
        """
        body = {"model": model, "messages": list(messages), **more, "stream": False}
        async with (await self._started()).post(_CHAT, json=body) as response:
            answer = _checked(response.status, await response.json(content_type=None))
            headers = {name.lower(): value for name, value in response.headers.items()}
            routing = {n.removeprefix(_ROUTING): v for n, v in headers.items() if n.startswith(_ROUTING)}
            return answer | {"_routing": routing}

    async def stream_request(
        self, model: str, messages: Sequence[Mapping[str, Any]], **more: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The same, piece by piece as Ollama streams it; the last has ``done`` true.

        Raises:
            RequestFailedError: the router's error, also in the middle.
        """
        body = {"model": model, "messages": list(messages), **more, "stream": True}
        async with (await self._started()).post(_CHAT, json=body) as response:
            rest = b""
            async for piece in response.content.iter_any():
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield _checked(response.status, json.loads(line))

    async def _started(self) -> aiohttp.ClientSession:
        async with self._starting:
            if self._session is None:
                async with AsyncExitStack() as running:
                    self._session = await self._start(running)
                    self._running = running.pop_all()
            return self._session

    async def _start(self, running: AsyncExitStack) -> aiohttp.ClientSession:
        """Serve the application; ``running`` stops it.

        Unlike ``uvicorn.Server.serve`` this handles no signals: they are the script's.
        """
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="hybrid-router-")))
        key, path = secrets.token_urlsafe(32), str(folder / "router.socket")
        (folder / "key").write_text(key)  # only this user may look into the folder
        settings = {
            "address": "127.0.0.1",
            "router_key_file": str(folder / "key"),
            "admin_key_file": str(folder / "key"),
            "log_dir": str(folder / "coordinator"),
            "pool": self._pool,
            "backends": [await _with_memory(backend) for backend in self._backends],
        } | self._settings
        try:
            config = RouterConfig.model_validate(settings)
        except ValidationError as error:
            raise HarnessError(f"HybridRouter: {first_error(error, root='settings')}") from None
        drain = Drain()
        listen = uvicorn.Config(
            create_app(config, drain),
            uds=path,
            lifespan="on",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=round(config.drain_s + config.stop_deadline_s) + 5,
        )
        listen.load()
        server = uvicorn.Server(listen)
        server.lifespan = listen.lifespan_class(listen)
        session = aiohttp.ClientSession(
            # A connection that is not kept open cannot be closed by the server while a request is sent on it.
            connector=aiohttp.UnixConnector(path, limit=0, force_close=True),
            headers={"authorization": f"Bearer {key}"},
            timeout=aiohttp.ClientTimeout(total=None),
        )
        await running.enter_async_context(session)
        try:
            await server.startup()
        except SystemExit:
            raise HarnessError("the router does not start; its log says why") from None
        running.push_async_callback(server.shutdown)
        running.callback(drain.begin)
        return session


def _checked(status: int, answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise RequestFailedError(status, str(answer["error"]), answer.get("details") or {})
    return answer


def _pool_server(server: Any) -> dict[str, Any]:
    """An Ollama server as the configuration has it."""
    if not isinstance(server, Mapping):
        text = str(server)
        url = text if "://" in text else f"http://{text if ':' in text else f'{text}:{_OLLAMA_PORT}'}"
        server = {"url": url}
    elif "url" not in server:
        server = {"url": f"http://{server['host']}:{server.get('port', _OLLAMA_PORT)}"}
    return {"node": str(server["url"]), "kind": "ollama", **server}


def _backend(backend: Mapping[str, Any] | str) -> dict[str, Any]:
    """A backend as the configuration has it, without its memory where that is not given."""
    if isinstance(backend, str):
        host, _, port = backend.partition(":")
        backend = {"host": host, "port": port or RPC_PORT}
    endpoint = f"{backend['host']}:{backend.get('port', RPC_PORT)}"
    memory = backend.get("memory_bytes") or backend.get("total_bytes")
    return {"node": backend.get("node") or endpoint, "endpoint": endpoint, "memory_bytes": memory}


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
    except RpcError as error:
        raise HarnessError(
            f"backend {backend['endpoint']} does not say its memory: {error}; give memory_bytes, "
            "or use auto_discover_rpc_backends()"
        ) from None
    return backend | {"memory_bytes": memory}
