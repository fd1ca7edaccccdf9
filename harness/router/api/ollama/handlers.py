"""The Ollama API, ``/api``: as bytes to a real Ollama, else converted to the OpenAI API and back."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from harness.contracts.coordinator_state import CoordinatorPhase
from harness.router.api.ollama import request as ask
from harness.router.api.ollama.response import AnswerStream, Shape, done_answer, embed_answer, whole_answer
from harness.router.coordinator.coordinator import Coordinator
from harness.router.errors import RouterError
from harness.router.http.json_body import Json, dump, line, model_of, parse_answer, parse_object, respond
from harness.router.proxy.errors import error_message, refusal
from harness.router.proxy.proxy import Answer, Call, Exchange, HeldStream
from harness.router.proxy.sse import Events
from harness.router.proxy.upstream import read_body, while_connected, whole_lines
from harness.router.routing.rule import Route as Way

_NDJSON = "application/x-ndjson"
_UNLOAD_DEADLINE_S = 3600
"""An unload that a client asks for waits for everybody: nobody's answer is cut off for it."""


class OllamaApi:
    """Handlers of ``/api`` that ask a model something."""

    def __init__(self, exchange: Exchange, coordinator: Coordinator, *, body_limit_bytes: int) -> None:
        self._exchange = exchange
        self._coordinator = coordinator
        self._body_limit_bytes = body_limit_bytes

    @property
    def routes(self) -> list[Route]:
        """Paths and their handlers."""
        return [
            Route("/api/chat", self.chat, methods=["POST"]),
            Route("/api/generate", self.generate, methods=["POST"]),
            Route("/api/embed", self.embed, methods=["POST"]),
            Route("/api/embeddings", self.embeddings, methods=["POST"]),
        ]

    async def chat(self, request: Request) -> Response:
        """``/api/chat``: a chat completion. Without messages it loads the model."""
        body = await read_body(request, self._body_limit_bytes)
        asked = parse_object(body)
        model_of(asked)
        return await self._answer(
            request, body, asked, Shape.CHAT, "/v1/chat/completions", ask.chat_request(asked)
        )

    async def generate(self, request: Request) -> Response:
        """``/api/generate``: a chat of one message, a bare completion (``raw``) or an infill."""
        body = await read_body(request, self._body_limit_bytes)
        asked = parse_object(body)
        model_of(asked)
        if asked.get("raw"):
            path, wanted = "/v1/completions", ask.raw_request(asked)
        elif asked.get("suffix"):
            path, wanted = "/infill", ask.insert_request(asked)
        else:
            path, wanted = "/v1/chat/completions", ask.generate_request(asked)
        return await self._answer(request, body, asked, Shape.GENERATE, path, wanted)

    async def embed(self, request: Request) -> Response:
        """``/api/embed``: vectors of a text or of texts. Without any it loads the model."""
        body = await read_body(request, self._body_limit_bytes)
        asked = parse_object(body)
        wanted = ask.embed_request({"model": model_of(asked)}, asked.get("input") or "")
        return await self._embed(request, body, asked, wanted, asked.get("input"))

    async def embeddings(self, request: Request) -> Response:
        """``/api/embeddings``, Ollama's older form: the vector of one text."""
        body = await read_body(request, self._body_limit_bytes)
        asked = parse_object(body)
        wanted = ask.embed_request({"model": model_of(asked)}, asked.get("prompt") or "")
        return await self._embed(request, body, asked, wanted, asked.get("prompt"), single=True)

    async def _answer(
        self, request: Request, body: bytes, asked: Json, shape: Shape, path: str, wanted: Json
    ) -> Response:
        if ask.loads_only(asked) and ask.unloads(asked) and (gone := await self._unload(asked, shape)):
            return gone
        call = await while_connected(request, self._exchange.open(request, model_of(asked)))
        async with AsyncExitStack() as stack:
            stack.push_async_exit(call.held)
            if call.kind == "ollama":
                return await self._through(request, call, body, stack)
            if ask.loads_only(asked):
                return respond(done_answer(shape, call.model, "load"), headers=call.headers)
            answer = await while_connected(request, self._exchange.send(call, path, dump(wanted), stack))
            if answer.status == 200 and ask.streams(asked):
                stream = self._convert(call, answer, AnswerStream(shape, call.model))
                return HeldStream(stream, 200, call.headers, _NDJSON, held=stack.pop_all())
            whole = await self._whole(request, call, answer)
            spent = _spent(call)
            return respond(whole_answer(shape, whole, model=call.model, **spent), headers=call.headers)

    async def _embed(
        self, request: Request, body: bytes, asked: Json, wanted: Json, text: object, *, single: bool = False
    ) -> Response:
        call = await while_connected(request, self._exchange.open(request, model_of(asked)))
        async with AsyncExitStack() as stack:
            stack.push_async_exit(call.held)
            if call.kind == "ollama":
                return await self._through(request, call, body, stack)
            if not text:
                empty = {"embedding": []} if single else {"model": call.model, "embeddings": []}
                return respond(empty, headers=call.headers)
            sending = self._exchange.send(call, "/v1/embeddings", dump(wanted), stack)
            whole = await self._whole(request, call, await while_connected(request, sending))
            dimensions = asked.get("dimensions")
            made = embed_answer(whole, model=call.model, dimensions=dimensions, **_spent(call))
            if single:
                made = {"embedding": made["embeddings"][0] if made["embeddings"] else []}
            return respond(made, headers=call.headers)

    async def _whole(self, request: Request, call: Call, answer: Answer) -> Json:
        whole = parse_answer(await while_connected(request, self._exchange.whole(call, answer)))
        if answer.status != 200:
            raise refusal(answer.status, whole, model=call.model)
        return whole

    async def _unload(self, asked: Json, shape: Shape) -> Response | None:
        """Unload an idle model from the coordinator; None where it is not the coordinator's."""
        model, state = model_of(asked), self._coordinator.state
        decision = await self._exchange.decide(model)
        if decision.route is not Way.COORDINATOR:
            return None
        if state.phase is CoordinatorPhase.READY and state.model == decision.model:
            if busy := state.requests_in_flight:
                raise RouterError(409, "busy", f"model '{model}' is answering {busy} other requests")
            await self._coordinator.unload(signal="SIGTERM", deadline_s=_UNLOAD_DEADLINE_S)
        return respond(done_answer(shape, model, "unload"))

    async def _through(self, request: Request, call: Call, body: bytes, stack: AsyncExitStack) -> Response:
        """To a real Ollama and back, as bytes."""
        sending = self._exchange.send(call, request.url.path, body, stack)
        answer = await while_connected(request, sending)
        media_type = answer.headers.get("content-type", "application/json")
        if media_type.startswith(_NDJSON):
            stream = self._relay(call, answer)
            return HeldStream(stream, answer.status, call.headers, media_type, held=stack.pop_all())
        whole = await while_connected(request, self._exchange.whole(call, answer))
        return Response(whole, answer.status, call.headers, media_type)

    async def _relay(self, call: Call, answer: Answer) -> AsyncIterator[bytes]:
        try:
            async for piece in whole_lines(self._exchange.relay(call, answer)):
                yield piece
        except RouterError as error:
            yield line(error.ollama_body())

    async def _convert(self, call: Call, answer: Answer, stream: AnswerStream) -> AsyncIterator[bytes]:
        events = Events()
        try:
            async for piece in self._exchange.relay(call, answer):
                for event in events.feed(piece):
                    if lines := _lines(event, stream):
                        yield lines
            for event in events.end():
                if lines := _lines(event, stream):
                    yield lines
            stream.check_finished()
        except RouterError as error:
            yield line(error.ollama_body())
            return
        yield b"".join(line(one) for one in stream.end(**_spent(call)))


def _lines(data: bytes, stream: AnswerStream) -> bytes:
    """Ollama's lines for one event of an OpenAI stream."""
    if data == b"[DONE]":
        return b""
    event = parse_answer(data)
    if "error" in event:
        raise RouterError(502, "upstream", error_message(event))
    return b"".join(line(one) for one in stream.event(event))


def _spent(call: Call) -> dict[str, int]:
    return {"total_ns": time.monotonic_ns() - call.started_ns, "load_ns": call.load_ns}
