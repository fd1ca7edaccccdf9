"""The OpenAI API, ``/v1``: every server here speaks it, so a request within its bounds passes as bytes."""

from contextlib import AsyncExitStack
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from harness.router.api.checked import body_for, checked_request
from harness.router.errors import RouterError
from harness.router.http.bodies import FromBody
from harness.router.http.disconnect import receive_body, while_connected
from harness.router.http.json_body import Json, dump, model_of, parse_answer, parse_object, respond
from harness.router.models.catalogue import Catalogue
from harness.router.proxy.proxy import Proxy
from harness.router.proxy.stream import RelayedStream, lines_or_error
from harness.router.proxy.upstream import client_error
from harness.router.requests.check import CheckedRequest
from harness.router.requests.fields import Api

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
        """Completions and embeddings: checked, then bytes in, bytes out; only a server's 5xx is parsed."""
        api = Api(request.scope["path"])

        async def check(data: bytes) -> CheckedRequest:
            fields = parse_object(data, whole_pairs=True)
            model_of(fields)  # refuses a name that is too long for a message
            return await checked_request(request, api, fields)

        asked = FromBody(await receive_body(request, self.body_limit_bytes), check)
        model = model_of((await asked.get()).fields)
        return await while_connected(request, self._respond(request, model, asked))

    async def _respond(self, request: Request, model: str, asked: FromBody[CheckedRequest]) -> Response:
        call = await self.proxy.open(request, model)
        async with AsyncExitStack() as stack:
            stack.push_async_exit(call.resources)
            body = await body_for(request, asked.get, call, asked.body, as_it_came=True)
            answer = await self.proxy.send(call, request.scope["path"], body, stack)
            headers = call.headers
            media_type = answer.headers.get("content-type", "application/json")
            if not media_type.startswith(_SSE):
                whole = await self.proxy.read_all(call, answer)
                if answer.status >= 500 and (
                    error := client_error(answer.status, parse_answer(whole), model=model)
                ):
                    raise error
                return Response(whole, answer.status, headers, media_type)
            stream = lines_or_error(self.proxy.relay(call, answer), _error_event)
            return RelayedStream(stream, answer.status, headers, media_type, resources=stack.pop_all())

    async def models(self, request: Request) -> Response:
        return respond({"object": "list", "data": await self._models()})

    async def model(self, request: Request) -> Response:
        name = model_of({"model": request.path_params["model"]})
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
