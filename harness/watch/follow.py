"""Lines of a command that goes on, such as one on a node over SSH."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

LINE_MAX = 1 << 24
"""A line tells of every node at once: some kilobytes each."""


class EndedError(Exception):
    """The command ended; the message is its last word."""


async def follow_lines(argv: Sequence[str]) -> AsyncGenerator[str, None]:
    """Each line that ``argv`` prints, until it ends; its process ends with the iteration.

    Raises:
        EndedError: the command has ended, however it did.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LINE_MAX,
    )
    assert process.stdout is not None  # noqa: S101 - asked for above
    assert process.stderr is not None  # noqa: S101 - asked for above
    try:
        async for line in process.stdout:
            yield line.decode(errors="replace")
        said = (await process.stderr.read()).decode(errors="replace").strip().splitlines()
        raise EndedError(said[-1] if said else f"exit {await process.wait()}")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
