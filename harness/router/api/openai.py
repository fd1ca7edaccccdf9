"""The OpenAI API, ``/v1``: every server here speaks it, so bytes in and bytes out."""

from contextlib import AsyncExitStack
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from harness.router.errors import RouterError
from harness.router.http.disconnect import read_body, while_connected
from harness.router.http.json_body import Json, dump, model_of, parse_answer, parse_object, respond
from harness.router.models.catalogue import Catalogue
from harness.router.proxy.proxy import Proxy
from harness.router.proxy.stream import RelayedStream, lines_or_error
from harness.router.proxy.upstream import client_error

_SSE = "text/event-stream"
_OWNER = "llama-harness"


@dataclass(eq=False)
class OpenAiApi:
    """Handlers of ``/v1``."""

    proxy: Proxy
    catalogue: Catalogue
    body_limit_bytes: int

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/v1/chat/completions", self.forward, methods=["POST"]),
            Route("/v1/completions", self.forward, methods=["POST"]),
            Route("/v1/embeddings", self.forward, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
        ]

    async def forward(self, request: Request) -> Response:
        """Completions and embeddings: bytes in, bytes out; only a server's 5xx is parsed."""
        body = await read_body(request, self.body_limit_bytes)
        model = model_of(parse_object(body))
        return await while_connected(request, self._respond(request, model, body))

    async def _respond(self, request: Request, model: str, body: bytes) -> Response:
        call = await self.proxy.open(request, model)
        async with AsyncExitStack() as stack:
            stack.push_async_exit(call.resources)
            answer = await self.proxy.send(call, request.scope["path"], body, stack)
            media_type = answer.headers.get("content-type", "application/json")
            if not media_type.startswith(_SSE):
                whole = await self.proxy.read_all(call, answer)
                if answer.status >= 500 and (
                    error := client_error(answer.status, parse_answer(whole), model=model)
                ):
                    raise error
                return Response(whole, answer.status, call.headers, media_type)
            stream = lines_or_error(self.proxy.relay(call, answer), _error_event)
            return RelayedStream(stream, answer.status, call.headers, media_type, resources=stack.pop_all())

    async def models(self, request: Request) -> Response:
        return respond({"object": "list", "data": await self._models()})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        await self.proxy.resolver.decide(name, record=False)
        entries = {entry["id"]: entry for entry in await self._models()}
        return respond(entries.get(name) or _entry(name, 0))

    async def _models(self) -> list[Json]:
        created = {file.name: file.modified_ns // 10**9 for file in await self.catalogue.list_files()}
        return [_entry(name, created.get(name, 0)) for name in await self.proxy.resolver.models()]


def _error_event(error: RouterError) -> bytes:
    # The empty line first ends an event that the server began.
    return b"\ndata: " + dump(error.body()) + b"\n\n"


def _entry(name: str, created_s: int) -> Json:
    return {"id": name, "object": "model", "created": created_s, "owned_by": _OWNER}
