"""The short way to the handlers of the public APIs.

Starlette's layers between a server and a handler cost as much as a tenth of a relayed request. A POST to a
path without parameters needs none of them: its handler is looked up and its errors are answered here, by the
same table of handlers.
"""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

Endpoint = Callable[[Request], Awaitable[Response]]


class Shortcut:
    """In front of an application: calls what it would call."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        kinds = [kind for kind in app.exception_handlers if isinstance(kind, type)]
        self._kinds: tuple[type[Exception], ...] = tuple(k for k in kinds if issubclass(k, Exception))
        self._endpoints: dict[str, Endpoint] | None = None

    def _find(self, path: str) -> Endpoint | None:
        if self._endpoints is None:
            # Routes are added when the application starts: the first request comes after that.
            self._endpoints = {
                route.path: route.endpoint
                for route in self._app.routes
                if isinstance(route, Route) and "{" not in route.path and route.methods == {"POST"}
            }
        return self._endpoints.get(path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = None
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self._find(scope["path"])
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except self._kinds as error:
            handler = next(filter(None, map(self._app.exception_handlers.get, type(error).__mro__)))
            response = await handler(request, error)
        await response(scope, receive, send)
