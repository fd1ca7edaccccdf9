"""Server-sent events out of a stream of bytes that may be cut anywhere, inside a character too.

https://html.spec.whatwg.org/multipage/server-sent-events.html: an event is its ``data:`` lines up to an empty
line. Names, ids and comments are left out: no model server here uses them.
"""

from harness.router.errors import RouterError

_MOST_BYTES = 16 * 1024 * 1024
"""No answer of a model is one event of this size; a server that sends one is not kept in memory."""


class Events:
    """Collects bytes; gives the data of every event that is whole."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Data of the events that ``piece`` ends, in order.

        Raises:
            RouterError: an event is longer than 16 MiB (502).
        """
        if b"\n" not in piece:
            self._rest += piece
            self._check()
            return []
        *lines, rest = (bytes(self._rest) + piece).split(b"\n")
        self._rest = bytearray(rest)
        self._check()
        found = (self._line(line.removesuffix(b"\r")) for line in lines)
        return [event for event in found if event is not None]

    def end(self) -> list[bytes]:
        """What the stream's end leaves: the last event, if its empty line never came."""
        line = bytes(self._rest)
        self._rest.clear()
        found = (self._line(line), self._line(b""))
        return [event for event in found if event is not None]

    def _line(self, line: bytes) -> bytes | None:
        if line:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            return None
        if not self._data:
            return None
        event, self._data = b"\n".join(self._data), []
        return event

    def _check(self) -> None:
        if len(self._rest) > _MOST_BYTES:
            raise RouterError(502, "upstream", f"the server sent a line of more than {_MOST_BYTES} bytes")
