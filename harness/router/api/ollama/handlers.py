"""The Ollama API, ``/api``: as bytes to a real Ollama, else converted to the OpenAI API and back."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from harness.contracts.coordinator_state import CoordinatorPhase
from harness.router.api.checked import body_for, checked_request
from harness.router.api.ollama import request as convert
from harness.router.api.ollama.response import AnswerStream, Shape, done_answer, embed_answer, whole_answer
from harness.router.config import Route as RouteKind
from harness.router.coordinator.manager import CoordinatorManager
from harness.router.errors import RouterError
from harness.router.http.bodies import FromBody
from harness.router.http.disconnect import receive_body, while_connected
from harness.router.http.json_body import Json, line, model_of, parse_answer, parse_object, respond
from harness.router.proxy.proxy import Proxy
from harness.router.proxy.stream import Events, RelayedStream, lines_or_error
from harness.router.proxy.upstream import UpstreamRequest, UpstreamResponse, error_message, upstream_error
from harness.router.requests.check import CheckedRequest
from harness.router.requests.fields import Api

_NDJSON = "application/x-ndjson"
_UNLOAD_DEADLINE_S = 3600
"""An unload by a client waits for the requests in flight: none is cut off."""


@dataclass(frozen=True)
class Flags:
    """Facts of a request that are needed after it was sent."""

    model: str
    api: Api
    """The API that it is converted to."""
    only_loads: bool
    unloads: bool
    streams: bool
    dimensions: Any


@dataclass(frozen=True)
class Converted:
    """A request for the OpenAI API."""

    flags: Flags
    body: Json
    without_effect: list[str]
    """Fields of the client that are not in it."""


@dataclass(frozen=True)
class Checked:
    """A converted request within all bounds."""

    flags: Flags
    request: CheckedRequest


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
        return await self._answer(request, await self._read(request, _as_chat), Shape.CHAT)

    async def generate(self, request: Request) -> Response:
        """``/api/generate``: a chat of one message, a bare completion (``raw``) or an infill."""
        return await self._answer(request, await self._read(request, _as_generate), Shape.GENERATE)

    async def embed(self, request: Request) -> Response:
        """``/api/embed``: vectors of a text or of texts. Without any it loads the model."""
        return await self._embed(request, await self._read(request, _as_embed))

    async def embeddings(self, request: Request) -> Response:
        """``/api/embeddings``, Ollama's older form: the vector of one text."""
        return await self._embed(request, await self._read(request, _as_embeddings), single=True)

    async def _read(self, request: Request, make: Callable[[Json], Converted]) -> FromBody[Checked]:
        async def check(data: bytes) -> Checked:
            fields = parse_object(data)
            fields |= {"model": model_of(fields)}
            converted = make(fields)
            flags = converted.flags
            checked = await checked_request(request, flags.api, converted.body, convert.spelled, fields)
            checked.unknown += converted.without_effect
            return Checked(flags, checked)

        return FromBody(await receive_body(request, self.body_limit_bytes), check)

    async def _answer(self, request: Request, asked: FromBody[Checked], shape: Shape) -> Response:
        flags = (await asked.get()).flags
        if flags.only_loads and flags.unloads and (unloaded := await self._unload(flags.model, shape)):
            return unloaded
        call = await while_connected(request, self.proxy.open(request, flags.model))
        async with AsyncExitStack() as stack:
            stack.push_async_exit(call.resources)
            if call.kind == "ollama":
                return await self._pass_through(request, call, asked, stack)
            if flags.only_loads:
                return respond(done_answer(shape, call.model, "load"), headers=call.headers)
            sending = self._send(request, call, asked, flags.api.value, stack)
            answer, headers = await while_connected(request, sending)
            if answer.status == 200 and flags.streams:
                stream = self._convert(call, answer, AnswerStream(shape, call.model))
                return RelayedStream(stream, 200, headers, _NDJSON, resources=stack.pop_all())
            whole = await self._whole(request, call, answer)
            body_out = whole_answer(shape, whole, model=call.model, **_durations(call))
            return respond(body_out, headers=headers)

    async def _embed(self, request: Request, asked: FromBody[Checked], *, single: bool = False) -> Response:
        flags = (await asked.get()).flags
        call = await while_connected(request, self.proxy.open(request, flags.model))
        async with AsyncExitStack() as stack:
            stack.push_async_exit(call.resources)
            if call.kind == "ollama":
                return await self._pass_through(request, call, asked, stack)
            if flags.only_loads:
                empty = {"embedding": []} if single else {"model": call.model, "embeddings": []}
                return respond(empty, headers=call.headers)
            sending = self._send(request, call, asked, flags.api.value, stack)
            answer, headers = await while_connected(request, sending)
            whole = await self._whole(request, call, answer)
            durations = _durations(call)
            vectors = embed_answer(whole, model=call.model, dimensions=flags.dimensions, **durations)
            if single:
                vectors = {"embedding": vectors["embeddings"][0] if vectors["embeddings"] else []}
            return respond(vectors, headers=headers)

    async def _send(
        self,
        request: Request,
        call: UpstreamRequest,
        asked: FromBody[Checked],
        path: str,
        stack: AsyncExitStack,
    ) -> tuple[UpstreamResponse, dict[str, str]]:
        """Send the request; returns the server's answer, and headers for the client's."""

        async def checked() -> CheckedRequest:
            return (await asked.get()).request

        body = await body_for(request, checked, call, asked.body, as_it_came=call.kind == "ollama")
        return await self.proxy.send(call, path, body, stack), call.headers

    async def _whole(self, request: Request, call: UpstreamRequest, answer: UpstreamResponse) -> Json:
        whole = parse_answer(await while_connected(request, self.proxy.read_all(call, answer)))
        if answer.status != 200:
            raise upstream_error(answer.status, whole, model=call.model)
        return whole

    async def _unload(self, model: str, shape: Shape) -> Response | None:
        """Unload an idle model from the coordinator; None where the coordinator does not serve it."""
        state = self.coordinator.state
        decision = await self.proxy.resolver.decide(model, record=False)
        if decision.route is not RouteKind.COORDINATOR:
            return None
        if state.phase is CoordinatorPhase.READY and state.model == decision.model:
            if busy := state.requests_in_flight:
                raise RouterError(409, "busy", f"model '{model}' is answering {busy} other requests")
            await self.coordinator.unload(signal="SIGTERM", deadline_s=_UNLOAD_DEADLINE_S)
        return respond(done_answer(shape, model, "unload"))

    async def _pass_through(
        self, request: Request, call: UpstreamRequest, asked: FromBody[Checked], stack: AsyncExitStack
    ) -> Response:
        """Relay to a real Ollama, as bytes."""
        sending = self._send(request, call, asked, request.url.path, stack)
        answer, headers = await while_connected(request, sending)
        media_type = answer.headers.get("content-type", "application/json")
        if media_type.startswith(_NDJSON):
            relayed = self.proxy.relay(call, answer)
            stream = lines_or_error(relayed, lambda error: line(error.ollama_body()))
            return RelayedStream(stream, answer.status, headers, media_type, resources=stack.pop_all())
        whole = await while_connected(request, self.proxy.read_all(call, answer))
        return Response(whole, answer.status, headers, media_type)

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


def _as_chat(fields: Json) -> Converted:
    return _converted(fields, Api.CHAT, convert.chat_request(fields))


def _as_generate(fields: Json) -> Converted:
    if fields.get("raw"):
        return _converted(fields, Api.COMPLETION, convert.raw_request(fields))
    if fields.get("suffix"):
        return _converted(fields, Api.INFILL, convert.insert_request(fields))
    return _converted(fields, Api.CHAT, convert.generate_request(fields))


def _as_embed(fields: Json, key: str = "input") -> Converted:
    text = fields.get(key) or ""
    flags = _flags(fields, Api.EMBEDDING, only_loads=not text)
    return Converted(flags, convert.embed_request(fields, text), [])


def _as_embeddings(fields: Json) -> Converted:
    return _as_embed(fields, "prompt")


def _converted(fields: Json, api: Api, body: Json) -> Converted:
    flags = _flags(fields, api, only_loads=convert.loads_only(fields))
    return Converted(flags, body, convert.without_effect(fields))


def _flags(fields: Json, api: Api, *, only_loads: bool) -> Flags:
    unloads, streams = convert.unloads(fields), convert.streams(fields)
    return Flags(fields["model"], api, only_loads, unloads, streams, fields.get("dimensions"))


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
