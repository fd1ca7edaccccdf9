"""Streamed responses: bytes of an upstream on their way to the client."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from harness.router.errors import RouterError
from harness.router.http.disconnect import ClientLeftError, ClientWatch

_RELAYED_LINE_BYTES = 1024 * 1024
"""A longer line is passed on in parts."""
_LINE_LIMIT_BYTES = 16 * 1024 * 1024
"""Limit of one line of an event; no event of a model is that long."""


class RelayedStream(StreamingResponse):
    """A stream that releases its upstream when it ends, breaks or its client disconnects."""

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
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._resources:
            # The response has begun: a disconnect is no error any more.
            with suppress(ClientLeftError):
                await ClientWatch.of(scope, receive).guard(self.stream_response(send))


async def whole_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, cut after line ends; of a stream that breaks, the incomplete last line is dropped.

    Servers send whole lines, so this delays nothing that a client could read. A line of more than 1 MiB is
    passed on in parts.
    """
    rest = b""
    async for chunk in chunks:
        end = chunk.rfind(b"\n") + 1
        if end or len(rest) > _RELAYED_LINE_BYTES:
            end = end or len(chunk)
            yield rest + chunk[:end]
            rest = chunk[end:]
        else:
            rest += chunk
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
        if len(self._rest) > _LINE_LIMIT_BYTES:
            message = f"the server sent a line of more than {_LINE_LIMIT_BYTES} bytes"
            raise RouterError(502, "upstream", message)
        events = (self._line(line.removesuffix(b"\r")) for line in lines)
        return [event for event in events if event is not None]

    def end(self) -> list[bytes]:
        """The last event, if the stream ended without its empty line."""
        line = bytes(self._rest)
        self._rest.clear()
        events = (self._line(line), self._line(b""))
        return [event for event in events if event is not None]

    def _line(self, line: bytes) -> bytes | None:
        if line:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            return None
        if not self._data:
            return None
        event, self._data = b"\n".join(self._data), []
        return event
