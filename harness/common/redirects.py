"""HTTP redirects: this project's clients follow none."""

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse


class RedirectedError(aiohttp.ClientError):
    """A server answered with another address instead of an answer."""


async def refuse_redirects(request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
    """Middleware of a ``ClientSession``: no server can send the client to another address.

    Raises:
        RedirectedError: the answer is a redirect.
    """
    response = await handler(request)
    if 300 <= response.status < 400:
        response.close()
        raise RedirectedError(
            f"{request.url.origin()} redirects ({response.status}); redirects are not followed"
        )
    return response
