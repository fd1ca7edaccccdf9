"""Whole answers of other servers, read within a limit."""

import aiohttp

from harness.router.errors import RouterError

LISTING_BYTES = 8 << 20
"""Limit of a list of models, or of a description of one."""
_BLOCK_BYTES = 256 * 1024


async def read_answer(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    """The body of a response.

    Raises:
        RouterError: it is longer than ``limit_bytes`` (502).
        aiohttp.ClientError, TimeoutError: the server broke off, or took too long.
    """
    body = bytearray()
    while block := await response.content.read(_BLOCK_BYTES):
        body += block
        if len(body) > limit_bytes:
            response.close()
            raise too_long(limit_bytes)
    return bytes(body)


def too_long(limit_bytes: int) -> RouterError:
    """The error for an answer above the limit."""
    text = f"the server's answer is longer than {limit_bytes} bytes; the limit is router_answer_limit"
    return RouterError(502, "answer_too_long", text)
