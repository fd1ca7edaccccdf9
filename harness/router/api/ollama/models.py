"""The part of the Ollama API that describes models: ``/api/tags``, ``show``, ``ps`` and ``version``.

``details``, ``model_info`` and ``capabilities`` come from the header of the GGUF file, in the shape of
https://github.com/ollama/ollama/blob/main/docs/api.md.
"""

import asyncio
import hashlib
import math
import re
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from harness.contracts.coordinator_state import CoordinatorPhase, LoadReport
from harness.errors import HarnessError
from harness.llama.gguf import GgufModel, SkippedArray
from harness.llama.ollama_storage import same_model
from harness.router.config import Route as RouteKind
from harness.router.config import RouterConfig
from harness.router.coordinator.manager import CoordinatorManager
from harness.router.errors import CONNECTION_ERRORS, RouterError
from harness.router.http.answers import LISTING_BYTES, read_answer
from harness.router.http.bodies import Body
from harness.router.http.disconnect import receive_body, while_connected
from harness.router.http.json_body import Json, model_of, parse_answer, parse_object, respond
from harness.router.models.catalogue import Catalogue, ModelFile
from harness.router.pool.pool import Pool
from harness.router.pool.server import PoolTarget
from harness.router.proxy.proxy import Proxy

_API_VERSION = "0.12.6"
"""The release of Ollama whose API is followed: clients compare it before they use newer parts of it."""
_NEVER = "9999-12-31T23:59:59Z"
"""When a model expires that is never unloaded."""
_BLOB = re.compile(r"^sha256-([0-9a-f]{64})$")
_STEPS = ((1e9, "B", 1), (1e6, "M", 2), (1e3, "K", 0))
_TEMPLATE = "tokenizer.chat_template"
_LISTS = {"openai": "/v1/models", "ollama": "/api/tags"}
_LIST_S = 2
"""A pool server that does not answer in this time is left out of a list."""


@dataclass(eq=False)
class OllamaModels:
    """Handlers of ``/api`` that need no model loaded."""

    config: RouterConfig
    catalogue: Catalogue
    pool: Pool
    coordinator: CoordinatorManager
    proxy: Proxy
    session: aiohttp.ClientSession

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/api/tags", self.tags),
            Route("/api/show", self.show, methods=["POST"]),
            Route("/api/ps", self.ps),
            Route("/api/version", self.version),
        ]

    async def version(self, request: Request) -> Response:
        return respond({"version": _API_VERSION})

    async def tags(self, request: Request) -> Response:
        """``/api/tags``: every model that a request can name."""
        entries = {file.name: await self._entry(file) for file in await self.catalogue.list_files()}
        others = [model for model in await self.proxy.resolver.models() if model not in entries]
        entries |= await self._pool_entries(others)
        return respond({"models": [entries[name] for name in sorted(entries)]})

    async def show(self, request: Request) -> Response:
        """``/api/show``: the facts in a model's file."""
        body = await receive_body(request, self.config.body_limit_bytes)
        fields = parse_object(await body.read())
        model = model_of(fields)
        decision = await self.proxy.resolver.decide(model, record=False)
        target = self.pool.pick(model) if decision.route is RouteKind.POOL else None
        if target and target.kind == "ollama":
            return await self._shown_by_pool(request, model, body)
        if file := self.catalogue.find(model):
            header = await asyncio.to_thread(self.catalogue.header, file)
            return respond(_description(file, header, verbose=bool(fields.get("verbose"))))
        details = (await self._pool_entries([model]))[model]["details"]
        return respond({"details": details, "model_info": {}, "capabilities": ["completion"]})

    async def ps(self, request: Request) -> Response:
        """``/api/ps``: what is in memory, on the backends and in the pool."""
        running = await self._pool_running()
        state = self.coordinator.state
        ready = state.model if state.phase is CoordinatorPhase.READY else None
        if ready and (file := self.catalogue.find(ready)):
            report = state.report or LoadReport()
            figures = {
                "size": sum(buffer.total_bytes for buffer in report.buffers),
                "size_vram": sum(buffer.total_bytes for buffer in report.rpc_buffers),
                "expires_at": self._expires_at(),
                "context_length": state.plan.context if state.plan else self.config.context,
            }
            running.insert(0, await self._entry(file) | figures)
        return respond({"models": running})

    def _expires_at(self) -> str:
        """The earliest moment at which it could go: an idle time from now."""
        if not self.config.idle_unload_s:
            return _NEVER
        return (datetime.now(UTC) + timedelta(seconds=self.config.idle_unload_s)).isoformat()

    async def _entry(self, file: ModelFile) -> Json:
        """One model of ``/api/tags``; without a readable header only the facts of the file system."""
        try:
            details = _details(await asyncio.to_thread(self.catalogue.header, file))
        except HarnessError:
            details = {"format": "gguf"}
        return _tag(file.name, file.modified_ns, file.file_bytes, _digest(file), details)

    async def _shown_by_pool(self, request: Request, model: str, body: Body) -> Response:
        call = await while_connected(request, self.proxy.open(request, model))
        async with AsyncExitStack() as stack:
            stack.push_async_exit(call.resources)
            answer = await while_connected(request, self.proxy.send(call, "/api/show", body, stack))
            whole = await while_connected(request, self.proxy.read_all(call, answer))
            return Response(whole, answer.status, call.headers, answer.headers.get("content-type"))

    async def _pool_entries(self, models: list[str]) -> dict[str, Json]:
        """The pool servers' descriptions of models that only they have; little where one does not answer."""
        entries = {model: _server_entry(model, {}) for model in models}
        targets = {model: target for model in models if (target := self.pool.pick(model))}
        servers = {target.url: target for target in targets.values()}
        listings = await asyncio.gather(*(self._list(t, _LISTS[t.kind]) for t in servers.values()))
        answers = dict(zip(servers, listings, strict=True))
        for model, target in targets.items():
            entries[model] |= _listed(model, target, answers[target.url])
        return entries

    async def _pool_running(self) -> list[Json]:
        models = [(model, target) for model in self.pool.models if (target := self.pool.pick(model))]
        ollamas = {target.url: target for _, target in models if target.kind == "ollama"}
        listings = await asyncio.gather(*(self._list(target, "/api/ps") for target in ollamas.values()))
        running = [model for answer in listings for model in _listed_models(answer)]
        # A llama-server holds its model for as long as it runs.
        resident = [model for model, target in models if target.kind == "openai"]
        for name, entry in (await self._pool_entries(resident)).items():
            if entry["size"]:
                running.append(entry | {"model": name, "size_vram": 0, "expires_at": _NEVER})
        return running

    async def _list(self, target: PoolTarget, path: str) -> Json:
        headers = {"authorization": f"Bearer {target.key}"} if target.key else {}
        timeout = aiohttp.ClientTimeout(total=_LIST_S)
        try:
            async with self.session.get(target.url + path, headers=headers, timeout=timeout) as answer:
                if answer.status != 200:
                    return {}
                return parse_answer(await read_answer(answer, LISTING_BYTES))
        except (*CONNECTION_ERRORS, RouterError):
            return {}


def _listed(model: str, target: PoolTarget, answer: Json) -> Json:
    """The entry of ``model`` in a server's own list."""
    if target.kind == "ollama":
        by_name = {same_model(entry["name"]): entry for entry in _listed_models(answer)}
        return by_name.get(same_model(model), {})
    for entry in _objects(answer.get("data")):
        if entry.get("id") == model and isinstance(entry.get("meta"), dict):
            return _server_entry(model, entry["meta"])
    return {}


class _Details(BaseModel):
    """What an Ollama says of a model's file; what is not read here is dropped."""

    parent_model: str = ""
    format: str = ""
    family: str = ""
    families: list[str] | None = None
    parameter_size: str = ""
    quantization_level: str = ""


class _ListedModel(BaseModel):
    """A model in an Ollama's ``/api/tags`` or ``/api/ps``."""

    name: str
    model: str = ""
    modified_at: str = ""
    size: int = Field(0, ge=0)
    digest: str = ""
    details: _Details = _Details()
    size_vram: int = Field(0, ge=0)
    expires_at: str = ""
    context_length: int = Field(0, ge=0)


def _listed_models(answer: Json) -> list[Json]:
    """The models of an Ollama's list; an entry of another shape is left out."""
    models = []
    for entry in _objects(answer.get("models")):
        with suppress(ValidationError, RecursionError):
            models.append(_ListedModel.model_validate(entry).model_dump(exclude_unset=True))
    return models


def _objects(value: object) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _server_entry(name: str, meta: Json) -> Json:
    """One model that a llama-server of the pool has, from the ``meta`` of its ``/v1/models``."""
    parameters = meta.get("n_params")
    parameter_size = {"parameter_size": _count(parameters)} if isinstance(parameters, int) else {}
    size = meta.get("size")
    details = {"parent_model": "", "format": "gguf", "family": "", "families": []} | parameter_size
    digest = hashlib.sha256(name.encode()).hexdigest()
    return _tag(name, 0, size if isinstance(size, int) and size > 0 else 0, digest, details)


def _tag(name: str, modified_ns: int, size: int, digest: str, details: Json) -> Json:
    modified_at = _moment(modified_ns)
    entry = {"name": name, "model": name, "modified_at": modified_at, "size": size, "digest": digest}
    return entry | {"details": details}


def _description(file: ModelFile, header: GgufModel, *, verbose: bool) -> Json:
    """The answer of ``/api/show``; arrays such as the vocabulary only if ``verbose``, and then if short."""
    template = str(header.metadata.get(_TEMPLATE) or "")
    return {
        "modelfile": f"FROM {file.name}\n",
        "parameters": "",
        "template": template,
        "license": str(header.metadata.get("general.license") or ""),
        "details": _details(header),
        "model_info": {"general.parameter_count": _parameter_count(header)}
        | {key: _shown(value, verbose) for key, value in header.metadata.items() if key != _TEMPLATE},
        "capabilities": _capabilities(header, template),
        "modified_at": _moment(file.modified_ns),
    }


def _details(header: GgufModel) -> Json:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": header.architecture,
        "families": [header.architecture],
        "parameter_size": _count(_parameter_count(header)),
        "quantization_level": header.quantisation,
    }


def _capabilities(header: GgufModel, template: str) -> list[str]:
    kinds = ["embedding"] if header.get("pooling_type") is not None else ["completion"]
    if "tools" in template:
        kinds.append("tools")
    if any(key.endswith(("fim_suf_token_id", "suffix_token_id")) for key in header.metadata):
        kinds.append("insert")
    if "enable_thinking" in template or "<think>" in template:
        kinds.append("thinking")
    return kinds


def _parameter_count(header: GgufModel) -> int:
    return sum(math.prod(tensor.shape) for tensor in header.tensors)


def _count(parameters: int) -> str:
    """A number of parameters as Ollama writes it: ``8.0B`` is ``8B``, 134,515,008 is ``134.52M``."""
    for step, unit, places in _STEPS:
        if parameters >= step:
            number = parameters / step
            return f"{number:.{0 if number == int(number) else places}f}{unit}"
    return str(parameters)


def _digest(file: ModelFile) -> str:
    """SHA-256 of a file in Ollama's storage, which is its name; of any other a stand-in.

    The stand-in changes with the file's name, size and time: hashing 40 GB takes minutes.
    """
    if blob := _BLOB.match(file.path.resolve().name):
        return blob.group(1)
    return hashlib.sha256(f"{file.name}\n{file.file_bytes}\n{file.modified_ns}".encode()).hexdigest()


def _moment(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat().replace("+00:00", "Z")


def _shown(value: Any, verbose: bool) -> Any:
    if isinstance(value, SkippedArray) or (isinstance(value, list) and not verbose):
        return None
    return value
