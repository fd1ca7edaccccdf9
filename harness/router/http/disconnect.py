"""The client of a request: its body is read within a time limit, its disconnect cancels the work."""

import asyncio
from collections.abc import Awaitable
from contextlib import nullcontext
from typing import Any, TypeVar, cast

from starlette.requests import Request
from starlette.types import Receive, Scope

from harness.router.errors import RouterError
from harness.router.http.bodies import Body
from harness.router.http.limits import LimitedProtocol
from harness.router.http.quotas import usage_of

T = TypeVar("T")

BODY_TIMEOUT_S = 60.0
"""How long a client may take to send a request's body."""


async def receive_body(request: Request, limit_bytes: int) -> Body:
    """The request's body, which is kept until the request has ended.

    Raises:
        RouterError: it is longer than ``limit_bytes`` (413), took longer than 60 s to arrive (408), or bodies
            have too many bytes already (429, 503).
        ClientLeftError: the client disconnected before its end.
    """
    body = usage_of(request).new_body()
    connection: LimitedProtocol | None = getattr(request.state, "connection", None)
    has_arrived = connection is not None and not connection.body_incomplete
    try:
        async with nullcontext() if has_arrived else asyncio.timeout(BODY_TIMEOUT_S):
            more = True
            while more and body.size <= limit_bytes:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeftError
                await body.append(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        raise RouterError(408, "body_timeout", f"the body took longer than {BODY_TIMEOUT_S:g} s") from None
    if body.size > limit_bytes:
        raise RouterError(413, "too_large", f"the body is longer than {limit_bytes} bytes")
    await body.complete()
    return body


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The bytes of a body that is used at once; see ``receive_body``."""
    return await (await receive_body(request, limit_bytes)).read()


class ClientLeftError(RouterError):
    """The client disconnected: nobody waits for the response any more."""

    def __init__(self) -> None:
        super().__init__(499, "client_left", "the client left before the answer")


class ClientWatch:
    """Watches for the disconnect of one request's client, once the body has been read.

    Its connection notifies it. Where there is none that can, a task waits for the message.
    """

    def __init__(self, receive: Receive, connection: LimitedProtocol | None = None) -> None:
        self._client_left = False
        self._worker: asyncio.Task[Any] | None = None
        self._connection = connection
        self._task: asyncio.Task[None] | None = None
        if connection:
            connection.on_client_left(self._left)
        else:
            self._task = asyncio.create_task(self._watch(receive))

    @classmethod
    def of(cls, scope: Scope, receive: Receive) -> "ClientWatch":
        """The watch of this request; the first call starts it, ``Gate`` closes it."""
        state = scope.setdefault("state", {})
        if "watch" not in state:
            state["watch"] = cls(receive, state.get("connection"))
        watch: ClientWatch = state["watch"]
        return watch

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        self._client_left = True
        if self._worker:
            self._worker.cancel()

    async def guard(self, work: Awaitable[T]) -> T:
        """Await ``work``, and cancel it when the client disconnects, so that no server works for nobody.

        Raises:
            ClientLeftError: the client disconnected.
        """
        worker = cast("asyncio.Task[Any]", asyncio.current_task())
        self._worker = worker
        if self._client_left:
            worker.cancel()
        try:
            return await work
        except asyncio.CancelledError:
            # Somebody else may have cancelled too: that cancellation is not swallowed.
            if self._client_left and worker.uncancel() == 0:
                raise ClientLeftError from None
            raise
        finally:
            self._worker = None

    def close(self) -> None:
        """Stop watching: the response has been sent."""
        if self._connection:
            self._connection.on_client_left(None)
        if self._task:
            self._task.cancel()


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """See ``ClientWatch.guard``."""
    return await ClientWatch.of(request.scope, request.receive).guard(work)
