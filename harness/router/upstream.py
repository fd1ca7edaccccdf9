"""Requests to pool servers and to the coordinator, and their answers relayed as bytes."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

import aiohttp
from starlette.requests import Request

from harness.router.errors import RouterError

T = TypeVar("T")

BROKEN = (aiohttp.ClientError, ConnectionError, TimeoutError)
"""What a server that goes away in the middle looks like."""

_CLOSED_REQUEST = 499


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body.

    Raises:
        RouterError: it is longer than ``limit`` bytes (413).
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise RouterError(413, "too_large", f"the body is longer than {limit} bytes")
    return bytes(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a request's body is.

    Raises:
        RouterError: it is something else (400).
    """
    try:
        asked = json.loads(body)
    except ValueError as error:
        raise RouterError(400, "bad_request", f"the body is not JSON: {error}") from None
    if not isinstance(asked, dict):
        raise RouterError(400, "bad_request", "the body is not a JSON object")
    return asked


def model_of(asked: dict[str, Any]) -> str:
    """The model that a request's body names.

    Raises:
        RouterError: it names none (400).
    """
    model = asked.get("model")
    if not isinstance(model, str):
        raise RouterError(400, "bad_request", "the body names no model")
    return model


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await ``work``, and cancel it when the client leaves, so that no server works for nobody."""
    task = asyncio.ensure_future(work)
    left = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RouterError(_CLOSED_REQUEST, "client_left", "the client left before the answer")
    finally:
        for each in (task, left):
            each.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def post(
    session: aiohttp.ClientSession, url: str, body: bytes, *, key: str | None, timeout_s: float
) -> aiohttp.ClientResponse:
    """Send ``body`` as it is; the answer's headers have arrived, its body has not been read."""
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    timeout = aiohttp.ClientTimeout(total=timeout_s, connect=10)
    return await session.post(url, data=body, headers=headers, timeout=timeout)


async def chunks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The answer's bytes as they arrive."""
    async for chunk in answer.content.iter_any():
        yield chunk


def error_message(body: Any) -> str:
    """The message in an OpenAI-style error body."""
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "no message")
