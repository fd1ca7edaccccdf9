"""The Ollama API, ``/api``: as bytes to a real Ollama, else converted to the OpenAI API and back."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from harness.contracts.coordinator_state import CoordinatorPhase
from harness.router.api.ollama import request as convert
from harness.router.api.ollama.response import AnswerStream, Shape, done_answer, embed_answer, whole_answer
from harness.router.config import Route as RouteKind
from harness.router.coordinator.manager import CoordinatorManager
from harness.router.errors import RouterError
from harness.router.http.disconnect import read_body, while_connected
from harness.router.http.json_body import Json, dump, line, model_of, parse_answer, parse_object, respond
from harness.router.proxy.proxy import Proxy
from harness.router.proxy.stream import Events, RelayedStream, lines_or_error
from harness.router.proxy.upstream import UpstreamRequest, UpstreamResponse, error_message, upstream_error

_NDJSON = "application/x-ndjson"
_UNLOAD_DEADLINE_S = 3600
"""An unload by a client waits for the requests in flight: none is cut off."""


@dataclass(eq=False)
class OllamaApi:
    """Handlers of ``/api`` that need a model's server."""

    proxy: Proxy
    coordinator: CoordinatorManager
    body_limit_bytes: int

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/api/chat", self.chat, methods=["POST"]),
            Route("/api/generate", self.generate, methods=["POST"]),
            Route("/api/embed", self.embed, methods=["POST"]),
            Route("/api/embeddings", self.embeddings, methods=["POST"]),
        ]

    async def chat(self, request: Request) -> Response:
        """``/api/chat``: a chat completion. Without messages it loads the model."""
        body, fields = await self._read(request)
        converted = convert.chat_request(fields)
        return await self._answer(request, body, fields, Shape.CHAT, "/v1/chat/completions", converted)

    async def generate(self, request: Request) -> Response:
        """``/api/generate``: a chat of one message, a bare completion (``raw``) or an infill."""
        body, fields = await self._read(request)
        if fields.get("raw"):
            path, converted = "/v1/completions", convert.raw_request(fields)
        elif fields.get("suffix"):
            path, converted = "/infill", convert.insert_request(fields)
        else:
            path, converted = "/v1/chat/completions", convert.generate_request(fields)
        return await self._answer(request, body, fields, Shape.GENERATE, path, converted)

    async def embed(self, request: Request) -> Response:
        """``/api/embed``: vectors of a text or of texts. Without any it loads the model."""
        return await self._embed(request, "input")

    async def embeddings(self, request: Request) -> Response:
        """``/api/embeddings``, Ollama's older form: the vector of one text."""
        return await self._embed(request, "prompt", single=True)

    async def _read(self, request: Request) -> tuple[bytes, Json]:
        body = await read_body(request, self.body_limit_bytes)
        fields = parse_object(body)
        return body, fields | {"model": model_of(fields)}

    async def _answer(
        self, request: Request, body: bytes, fields: Json, shape: Shape, path: str, converted: Json
    ) -> Response:
        only_loads = convert.loads_only(fields)
        if only_loads and convert.unloads(fields) and (unloaded := await self._unload(fields, shape)):
            return unloaded
        call = await while_connected(request, self.proxy.open(request, fields["model"]))
        async with AsyncExitStack() as stack:
            stack.push_async_exit(call.resources)
            if call.kind == "ollama":
                return await self._pass_through(request, call, body, stack)
            if only_loads:
                return respond(done_answer(shape, call.model, "load"), headers=call.headers)
            answer = await while_connected(request, self.proxy.send(call, path, dump(converted), stack))
            if answer.status == 200 and convert.streams(fields):
                stream = self._convert(call, answer, AnswerStream(shape, call.model))
                return RelayedStream(stream, 200, call.headers, _NDJSON, resources=stack.pop_all())
            whole = await self._whole(request, call, answer)
            body_out = whole_answer(shape, whole, model=call.model, **_durations(call))
            return respond(body_out, headers=call.headers)

    async def _embed(self, request: Request, key: str, *, single: bool = False) -> Response:
        body, fields = await self._read(request)
        text = fields.get(key)
        converted = convert.embed_request(fields, text or "")
        call = await while_connected(request, self.proxy.open(request, fields["model"]))
        async with AsyncExitStack() as stack:
            stack.push_async_exit(call.resources)
            if call.kind == "ollama":
                return await self._pass_through(request, call, body, stack)
            if not text:
                empty = {"embedding": []} if single else {"model": call.model, "embeddings": []}
                return respond(empty, headers=call.headers)
            sending = self.proxy.send(call, "/v1/embeddings", dump(converted), stack)
            whole = await self._whole(request, call, await while_connected(request, sending))
            dimensions = fields.get("dimensions")
            vectors = embed_answer(whole, model=call.model, dimensions=dimensions, **_durations(call))
            if single:
                vectors = {"embedding": vectors["embeddings"][0] if vectors["embeddings"] else []}
            return respond(vectors, headers=call.headers)

    async def _whole(self, request: Request, call: UpstreamRequest, answer: UpstreamResponse) -> Json:
        whole = parse_answer(await while_connected(request, self.proxy.read_all(call, answer)))
        if answer.status != 200:
            raise upstream_error(answer.status, whole, model=call.model)
        return whole

    async def _unload(self, fields: Json, shape: Shape) -> Response | None:
        """Unload an idle model from the coordinator; None where the coordinator does not serve it."""
        model, state = fields["model"], self.coordinator.state
        decision = await self.proxy.resolver.decide(model, record=False)
        if decision.route is not RouteKind.COORDINATOR:
            return None
        if state.phase is CoordinatorPhase.READY and state.model == decision.model:
            if busy := state.requests_in_flight:
                raise RouterError(409, "busy", f"model '{model}' is answering {busy} other requests")
            await self.coordinator.unload(signal="SIGTERM", deadline_s=_UNLOAD_DEADLINE_S)
        return respond(done_answer(shape, model, "unload"))

    async def _pass_through(
        self, request: Request, call: UpstreamRequest, body: bytes, stack: AsyncExitStack
    ) -> Response:
        """Relay to a real Ollama, as bytes."""
        sending = self.proxy.send(call, request.url.path, body, stack)
        answer = await while_connected(request, sending)
        media_type = answer.headers.get("content-type", "application/json")
        if media_type.startswith(_NDJSON):
            relayed = self.proxy.relay(call, answer)
            stream = lines_or_error(relayed, lambda error: line(error.ollama_body()))
            return RelayedStream(stream, answer.status, call.headers, media_type, resources=stack.pop_all())
        whole = await while_connected(request, self.proxy.read_all(call, answer))
        return Response(whole, answer.status, call.headers, media_type)

    async def _convert(
        self, call: UpstreamRequest, answer: UpstreamResponse, stream: AnswerStream
    ) -> AsyncIterator[bytes]:
        events = Events()
        try:
            async for piece in self.proxy.relay(call, answer):
                for event in events.feed(piece):
                    if lines := _lines(event, stream):
                        yield lines
            for event in events.end():
                if lines := _lines(event, stream):
                    yield lines
            yield b"".join(line(item) for item in stream.end(**_durations(call)))
        except RouterError as error:
            yield line(error.ollama_body())


def _lines(data: bytes, stream: AnswerStream) -> bytes:
    """Ollama's lines for one event of an OpenAI stream."""
    if data == b"[DONE]":
        return b""
    event = parse_answer(data)
    if "error" in event:
        raise RouterError(502, "upstream", error_message(event))
    return b"".join(line(item) for item in stream.event(event))


def _durations(call: UpstreamRequest) -> dict[str, int]:
    return {"total_ns": time.monotonic_ns() - call.started_ns, "load_ns": call.load_ns}
