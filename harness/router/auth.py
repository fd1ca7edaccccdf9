"""Who may ask for what: one key for models, one for administration; and a request id for everybody."""

import hmac
import json
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harness.router.logs import log, request_id

_OPEN = frozenset({"/healthz"})
_ADMIN = "/admin/"
_ID = re.compile(r"^[\w.:-]{1,64}$")


class Gate:
    """Outermost layer: request id, bearer key, one log line per request."""

    def __init__(self, app: ASGIApp, *, router_key: str, admin_key: str) -> None:
        self._app = app
        self._router_key = router_key.encode()
        self._admin_key = admin_key.encode()

    def _admits(self, path: str, headers: Headers) -> bool:
        if path in _OPEN:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        wanted = self._admin_key if path.startswith(_ADMIN) else self._router_key
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), wanted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        offered = headers.get("x-request-id", "")
        rid = offered if _ID.match(offered) else uuid.uuid4().hex
        request_id.set(rid)
        scope.setdefault("state", {})["request_id"] = rid
        started = time.monotonic()
        answered: dict[str, Any] = {}

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                out["x-request-id"] = rid
                answered["status"] = message["status"]
                if route := out.get("x-llama-route"):
                    answered["route"] = route
            await send(message)

        if self._admits(scope["path"], headers):
            await self._app(scope, receive, send_with_id)
        else:
            await _refuse(send_with_id)
        if scope["path"] not in _OPEN:
            took = round((time.monotonic() - started) * 1000, 1)
            log("request", method=scope["method"], path=scope["path"], ms=took, **answered)


async def _refuse(send: Send) -> None:
    message = "missing or wrong bearer key for this path"
    error = {"class": "unauthorized", "type": "unauthorized", "code": 401, "message": message}
    headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})
