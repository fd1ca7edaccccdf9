"""Streamed responses: bytes of an upstream on their way to the client."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, suppress

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from harness.router.errors import RouterError
from harness.router.http.bodies import Body
from harness.router.http.disconnect import ClientLeftError, ClientWatch
from harness.router.http.limits import LimitedProtocol
from harness.router.http.quotas import usage_of

_RELAYED_LINE_BYTES = 1024 * 1024
"""A longer line is passed on in parts."""
_EVENT_LIMIT_BYTES = 16 * 1024 * 1024
"""Limit of one event with all its lines; no event of a model is that long."""


class RelayedStream(StreamingResponse):
    """A stream that releases its upstream when it ends, breaks or its client disconnects.

    What a slow client has not taken yet is kept, so that the upstream is free at the end of its answer. The
    kept part has a budget; once that is spent, the upstream waits for the client.
    """

    def __init__(
        self,
        content: AsyncIterator[bytes],
        status: int,
        headers: dict[str, str],
        media_type: str,
        *,
        resources: AsyncExitStack,
    ) -> None:
        super().__init__(content, status, headers, media_type)
        self._content = content
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources:
            # The response has begun: a disconnect is no error any more.
            with suppress(ClientLeftError):
                await ClientWatch.of(scope, receive).guard(self._stream(Request(scope), send))

    async def _stream(self, request: Request, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        backlog = Backlog(request, send)
        async for piece in self._content:
            await backlog.send(piece)
        await self._resources.aclose()
        await backlog.send_all()
        await send({"type": "http.response.body"})


class Backlog:
    """The part of a stream that its client has not taken yet."""

    def __init__(self, request: Request, send: Send) -> None:
        self._connection: LimitedProtocol | None = getattr(request.state, "connection", None)
        self._request = request
        self._send = send
        self._kept: Body | None = None
        self._sent_bytes = 0
        """Of what is kept."""

    @property
    def _is_behind(self) -> bool:
        return self._connection is not None and self._connection.is_behind

    async def send(self, piece: bytes) -> None:
        """Send a piece after all before it; without waiting for the client, if it can be kept."""
        if self._kept is None:
            if not self._is_behind:
                await self._send_now(piece)
                return
            self._kept, self._sent_bytes = usage_of(self._request).new_body(answer=True), 0
        try:
            await self._kept.append(piece)
        except RouterError:
            await self.send_all()
            await self._send_now(piece)
        else:
            await self._send_kept(wait=False)

    async def send_all(self) -> None:
        """Send what is kept, as fast as the client takes it."""
        await self._send_kept(wait=True)

    async def _send_kept(self, *, wait: bool) -> None:
        while self._kept and (wait or not self._is_behind):
            if piece := await self._kept.read_on(self._sent_bytes):
                await self._send_now(piece)
                self._sent_bytes += len(piece)
            else:
                self._kept.close()
                self._kept = None

    async def _send_now(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})


async def whole_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, cut after line ends; of a stream that breaks, the incomplete last line is dropped.

    Servers send whole lines, so this delays nothing that a client could read. A line of more than 1 MiB is
    passed on in parts.
    """
    rest = b""
    async for chunk in chunks:
        end = chunk.rfind(b"\n") + 1
        if not end and len(rest) > _RELAYED_LINE_BYTES:
            end = len(chunk)
        if end:
            yield rest + chunk[:end]
            rest = b""
        rest += chunk[end:]
    if rest:
        yield rest


async def lines_or_error(
    chunks: AsyncIterator[bytes], error_line: Callable[[RouterError], bytes]
) -> AsyncIterator[bytes]:
    """The whole lines of a stream; if it breaks, the error as its last line."""
    try:
        async for lines in whole_lines(chunks):
            yield lines
    except RouterError as error:
        yield error_line(error)


class Events:
    """Parses server-sent events; the stream may be cut anywhere, also inside a character.

    https://html.spec.whatwg.org/multipage/server-sent-events.html: an event is its ``data:`` lines up to an
    empty line. Names, ids and comments are ignored: no model server here uses them.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        """Of the lines of the event that is not complete."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Data of the events that ``chunk`` completes, in order.

        Raises:
            RouterError: an event is longer than 16 MiB (502).
        """
        self._rest += chunk
        lines: list[bytes] = []
        if b"\n" in chunk:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
        events = self._events(line.removesuffix(b"\r") for line in lines)
        if self._data_bytes + len(self._rest) > _EVENT_LIMIT_BYTES:
            message = f"the server sent an event of more than {_EVENT_LIMIT_BYTES} bytes"
            raise RouterError(502, "upstream", message)
        return events

    def end(self) -> list[bytes]:
        """The last event, if the stream ended without its empty line."""
        line = bytes(self._rest)
        self._rest.clear()
        return self._events((line, b""))

    def _events(self, lines: Iterable[bytes]) -> list[bytes]:
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> bytes | None:
        if line:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._data_bytes += len(line)
            return None
        if not self._data:
            return None
        event, self._data, self._data_bytes = b"\n".join(self._data), [], 0
        return event
