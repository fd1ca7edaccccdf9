"""The OpenAI API, ``/v1``: what every server here speaks itself, so bytes in and bytes out."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from harness.router.errors import RouterError
from harness.router.http.json_body import Json, dump, model_of, parse_answer, parse_object, respond
from harness.router.models.catalogue import Catalogue
from harness.router.proxy.errors import clients_mistake
from harness.router.proxy.proxy import Answer, Call, Exchange, HeldStream
from harness.router.proxy.upstream import read_body, while_connected, whole_lines

_SSE = "text/event-stream"
_OWNER = "llama-harness"


class OpenAiApi:
    """Handlers of ``/v1``."""

    def __init__(self, exchange: Exchange, catalogue: Catalogue, *, body_limit_bytes: int) -> None:
        self._exchange = exchange
        self._catalogue = catalogue
        self._body_limit_bytes = body_limit_bytes

    @property
    def routes(self) -> list[Route]:
        """Paths and their handlers."""
        return [
            Route("/v1/chat/completions", self.forward, methods=["POST"]),
            Route("/v1/completions", self.forward, methods=["POST"]),
            Route("/v1/embeddings", self.forward, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{model:path}", self.model),
        ]

    async def forward(self, request: Request) -> Response:
        """Completions and embeddings: bytes in, bytes out; only a server's 5xx is looked into."""
        body = await read_body(request, self._body_limit_bytes)
        model = model_of(parse_object(body))
        return await while_connected(request, self._answered(request, model, body))

    async def _answered(self, request: Request, model: str, body: bytes) -> Response:
        call = await self._exchange.open(request, model)
        async with AsyncExitStack() as stack:
            stack.push_async_exit(call.held)
            answer = await self._exchange.send(call, request.scope["path"], body, stack)
            media_type = answer.headers.get("content-type", "application/json")
            if not media_type.startswith(_SSE):
                whole = await self._exchange.whole(call, answer)
                _raise_mistake(answer.status, whole, model)
                return Response(whole, answer.status, call.headers, media_type)
            stream = self._relay(call, answer)
            return HeldStream(stream, answer.status, call.headers, media_type, held=stack.pop_all())

    async def _relay(self, call: Call, answer: Answer) -> AsyncIterator[bytes]:
        try:
            async for piece in whole_lines(self._exchange.relay(call, answer)):
                yield piece
        except RouterError as error:
            # The empty line first ends an event that the server began.
            yield b"\ndata: " + dump(error.body()) + b"\n\n"

    async def models(self, request: Request) -> Response:
        """``/v1/models``."""
        return respond({"object": "list", "data": self._models()})

    async def model(self, request: Request) -> Response:
        """``/v1/models/{id}``."""
        name = request.path_params["model"]
        await self._exchange.decide(name)
        known = next((entry for entry in self._models() if entry["id"] == name), None)
        return respond(known or _entry(name, 0))

    def _models(self) -> list[Json]:
        created = {file.name: file.modified_ns // 10**9 for file in self._catalogue.files()}
        return [_entry(name, created.get(name, 0)) for name in self._exchange.models()]


def _entry(name: str, created_s: int) -> Json:
    return {"id": name, "object": "model", "created": created_s, "owned_by": _OWNER}


def _raise_mistake(status: int, body: bytes, model: str) -> None:
    if status < 500:
        return
    if mistake := clients_mistake(status, parse_answer(body), model=model):
        raise mistake
