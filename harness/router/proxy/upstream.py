"""Requests to pool servers and to the coordinator, and their answers relayed as bytes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from typing import Any, TypeVar, cast

import aiohttp
from starlette.requests import Request
from starlette.types import Receive, Scope

from harness.router.errors import RouterError

T = TypeVar("T")

BROKEN = (aiohttp.ClientError, ConnectionError, TimeoutError)
"""What a server that goes away in the middle looks like."""

LEAVING = "leaving"
"""In a request's state: what its connection calls when it is lost before the answer has ended."""
_CLOSED_REQUEST = 499
_MOST_HELD_BYTES = 1024 * 1024


async def read_body(request: Request, limit: int, *, timeout_s: float = 60) -> bytes:
    """The request's body.

    Raises:
        RouterError: it is longer than ``limit`` bytes (413), or took longer than ``timeout_s`` to come (408).
    """
    message = await request.receive()
    body = bytearray(message.get("body", b""))
    if message.get("more_body"):  # hardly ever: nearly every body comes in one piece
        try:
            async with asyncio.timeout(timeout_s):
                while message.get("more_body") and len(body) <= limit:
                    message = await request.receive()
                    body += message.get("body", b"")
        except TimeoutError:
            raise RouterError(408, "body_timeout", f"the body took longer than {timeout_s:g} s") from None
    if message["type"] == "http.disconnect":
        raise ClientLeftError
    if len(body) > limit:
        raise RouterError(413, "too_large", f"the body is longer than {limit} bytes")
    return bytes(body)


class ClientLeftError(RouterError):
    """Nobody waits for the answer any more."""

    def __init__(self) -> None:
        super().__init__(_CLOSED_REQUEST, "client_left", "the client left before the answer")


class ClientWatch:
    """Knows when the client of one request leaves.

    The connection tells it, where that can (``LEAVING``); else one task waits for it, as ASGI has it.
    """

    def __init__(self, receive: Receive, leaving: list[Callable[[], None]] | None = None) -> None:
        self.left = False
        self._worker: asyncio.Task[Any] | None = None
        self._task: asyncio.Task[None] | None = None
        if leaving is None:
            self._task = asyncio.create_task(self._watch(receive))
        else:
            leaving.append(self._leave)

    @classmethod
    def of(cls, scope: Scope, receive: Receive) -> "ClientWatch":
        """The watch of this request, which has been read to its end; it begins when first asked for."""
        state = scope.setdefault("state", {})
        watch: ClientWatch | None = state.get("watch")
        if watch is None:
            watch = state["watch"] = cls(receive, state.get(LEAVING))
        return watch

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        self.left = True
        if self._worker:
            self._worker.cancel()

    async def guard(self, work: Awaitable[T]) -> T:
        """Await ``work``, and cancel it when the client leaves, so that no server works for nobody.

        Raises:
            ClientLeftError: the client has left.
        """
        worker = cast("asyncio.Task[Any]", asyncio.current_task())
        self._worker = worker
        if self.left:
            worker.cancel()
        try:
            return await work
        except asyncio.CancelledError:
            # Somebody else may have cancelled too: theirs is not swallowed.
            if self.left and worker.uncancel() == 0:
                raise ClientLeftError from None
            raise
        finally:
            self._worker = None

    def close(self) -> None:
        """The answer has ended."""
        if self._task:
            self._task.cancel()


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await ``work``, and cancel it when the client leaves.

    Raises:
        ClientLeftError: the client has left.
    """
    return await ClientWatch.of(request.scope, request.receive).guard(work)


async def post(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes,
    *,
    key: str | None,
    timeout_s: float,
    keep_alive: bool = False,
) -> aiohttp.ClientResponse:
    """Send ``body`` as it is; the answer's headers have arrived, its body has not been read.

    No header of the client's goes with it.

    Args:
        keep_alive: leave the connection open for the next request. llama-server gives each connection one of
            its few threads for as long as it is open: others would wait behind it.
    """
    headers = {"content-type": "application/json"}
    if not keep_alive:
        headers["connection"] = "close"
    if key:
        headers["authorization"] = f"Bearer {key}"
    return await session.post(url, data=body, headers=headers, timeout=_timeout(timeout_s))


@cache
def _timeout(total_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s, connect=10)


async def whole_lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, but no line is begun that may never be ended: what a broken stream leaves is dropped.

    Servers send whole lines, so nothing is held back that was there to be read.
    """
    rest = b""
    async for piece in pieces:
        end = piece.rfind(b"\n") + 1
        if end or len(rest) > _MOST_HELD_BYTES:
            end = end or len(piece)
            yield rest + piece[:end]
            rest = piece[end:]
        else:
            rest += piece
    if rest:
        yield rest
