"""Bodies of requests, and of answers whose clients read slowly: large ones are in files without a name.

A request's body is kept until the request ends, as it may be sent twice; it may wait half an hour for its
model.
"""

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import IO, Generic, TypeVar

from harness.router.errors import RouterError

T = TypeVar("T")

_SPOOL_BYTES = 1024 * 1024
"""A body of this size goes to a file."""
_PIECE_BYTES = 64 * 1024
_MEMORY_BYTES = 32 * 1024 * 1024
"""Bodies in memory together; beyond that smaller ones go to files too."""


class BodyStore:
    """Where bodies are kept.

    Args:
        folder: of the files; None: the system's for temporary files. Only this user can read them.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.memory_bytes = 0
        """Of bodies that are in memory."""

    def is_full(self, body_bytes: int) -> bool:
        """Whether a body with this many bytes in memory has to go to a file."""
        return body_bytes >= _SPOOL_BYTES or self.memory_bytes > _MEMORY_BYTES

    def file(self) -> IO[bytes]:
        folder = self._folder if self._folder and self._folder.is_dir() else None
        return tempfile.TemporaryFile(dir=folder)


class Body:
    """One body: appended to, then ``complete``, then read as often as it is needed.

    Args:
        take: called with each change of the size in bytes, before the change; it may raise a RouterError.
    """

    def __init__(self, store: BodyStore, take: Callable[[int], None]) -> None:
        self.size = 0
        self._store = store
        self._take = take
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()
        """For the file: a read never uses a descriptor that was closed and now belongs to another file."""
        self.closed = False

    @property
    def in_memory(self) -> bool:
        return self._file is None

    async def append(self, data: bytes) -> None:
        """Add bytes; if this raises, none is added.

        Raises:
            RouterError: bodies have too many bytes already, or the file cannot be written (503).
        """
        self._take(len(data))
        self.size += len(data)
        self._memory += data
        self._store.memory_bytes += len(data)
        if self._store.is_full(len(self._memory)):
            try:
                await self._spool()
            except RouterError:
                self._remove_last(len(data))
                raise

    async def complete(self) -> None:
        """The body is complete: the rest of it is written to its file, if it has one."""
        if self._file and self._memory:
            await self._spool()

    async def read(self) -> bytes:
        """The whole body."""
        if self._file is None:
            return bytes(self._memory)
        return await asyncio.to_thread(self._read_at, 0, self.size)

    async def read_on(self, start: int) -> bytes:
        """The next bytes from ``start``, also before it is complete; none at its present end."""
        in_file = self.size - len(self._memory)
        if start < in_file:
            return await asyncio.to_thread(self._read_at, start, min(_PIECE_BYTES, in_file - start))
        return bytes(self._memory[start - in_file : start - in_file + _PIECE_BYTES])

    def payload(self) -> bytes | AsyncIterator[bytes]:
        """The whole body, as bytes or 1 MiB at a time."""
        return bytes(self._memory) if self._file is None else self.pieces()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The whole body, 1 MiB at a time."""
        if self._file is None:
            yield bytes(self._memory)
            return
        for start in range(0, self.size, _SPOOL_BYTES):
            yield await asyncio.to_thread(self._read_at, start, _SPOOL_BYTES)

    def close(self) -> None:
        """Delete it, once a write in another thread has ended."""
        with self._lock:
            self.closed = True
            self._forget_memory()
            if self._file:
                self._file.close()
        self._take(-self.size)
        self.size = 0

    async def _spool(self) -> None:
        try:
            await asyncio.to_thread(self._write, self.size - len(self._memory))
        except OSError as error:
            message = f"the router cannot keep the body in a file: {error.strerror}"
            raise RouterError(503, "bodies_full", message, retry_after_s=10) from None
        self._forget_memory()

    def _forget_memory(self) -> None:
        self._store.memory_bytes -= len(self._memory)
        self._memory.clear()

    def _remove_last(self, size: int) -> None:
        del self._memory[len(self._memory) - size :]
        self._store.memory_bytes -= size
        self.size -= size
        self._take(-size)

    def _write(self, start: int) -> None:
        with self._lock:
            if self.closed:
                return
            if self._file is None:
                self._file = self._store.file()
            self._file.seek(start)
            self._file.write(self._memory)
            self._file.flush()

    def _read_at(self, start: int, size: int) -> bytes:
        with self._lock:
            if self.closed or self._file is None:
                raise ValueError("the body is closed")
            self._file.seek(start)
            return self._file.read(size)


class FromBody(Generic[T]):
    """The result of ``make`` for a body's bytes.

    It is kept where the body is in memory; of a body in a file it is made anew each time, so that requests
    which wait hold nothing large.
    """

    def __init__(self, body: Body, make: Callable[[bytes], Awaitable[T]]) -> None:
        self.body = body
        self._make = make
        self._kept: T | None = None

    async def get(self) -> T:
        """The value; raises what ``make`` raises."""
        if self._kept is not None:
            return self._kept
        value = await self._make(await self.body.read())
        if self.body.in_memory:
            self._kept = value
        return value
