"""Who may ask for what: keys for models, one for administration; and a request id for everybody."""

import hmac
import json
import os
import re
import time
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harness.router.errors import RouterError
from harness.router.http.limits import Limits
from harness.router.http.metrics import Metrics
from harness.router.http.stream_stats import Observed
from harness.router.logs import log, request_id

_OPEN = frozenset({"/healthz", "/readyz"})
"""Answered without a key: they say nothing but yes or no."""
_BOTH = frozenset({"/metrics"})
"""Answered to either key: Prometheus is neither a user nor an administrator."""
_ADMIN = "/admin/"
_DASHBOARD = "/dashboard"
"""Has a login of its own: a browser sends no bearer key."""
_APIS = {"v1": "openai", "api": "ollama", "admin": "admin"}
_MODELS = ("openai", "ollama")
_UNAUTHORIZED = RouterError(401, "unauthorized", "missing or wrong bearer key for this path")
_ID = re.compile(rb"^[\w.:-]{1,64}$")


class Gate:
    """Outermost layer: request id, bearer key, one log line and one count per request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        router_keys: Sequence[str],
        admin_key: str,
        metrics: Metrics,
        limits: Limits | None = None,
    ) -> None:
        self._app = app
        self._router_keys = [key.encode() for key in router_keys]
        self._admin_keys = [admin_key.encode()]
        self._metrics = metrics
        self._limits = limits

    def _admits(self, path: str, authorization: bytes) -> bool:
        if path in _OPEN or path == _DASHBOARD or path.startswith(_DASHBOARD + "/"):
            return True
        scheme, _, given = authorization.partition(b" ")
        if path in _BOTH:
            wanted = self._router_keys + self._admin_keys
        else:
            wanted = self._admin_keys if path.startswith(_ADMIN) else self._router_keys
        # Every key is compared, so that the time taken tells nothing of which one was close.
        fits = [hmac.compare_digest(given.strip(), key) for key in wanted]
        return scheme.lower() == b"bearer" and any(fits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, headers = scope["path"], dict(scope["headers"])
        offered = headers.get(b"x-request-id", b"")
        rid = offered.decode() if _ID.match(offered) else os.urandom(16).hex()
        request_id.set(rid)
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = rid
        api = _APIS.get(path.split("/", 2)[1], "other")
        for_model = api in _MODELS and scope["method"] == "POST"
        seen = state["observed"] = Observed(self._metrics, api=api, request_id=rid, for_model=for_model)

        async def send_seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = out = list(message["headers"])
                kind = next((value for name, value in out if name == b"content-type"), b"")
                out.append((b"x-request-id", rid.encode()))
                seen.begin(message["status"], route=state.get("route"), content_type=kind.decode("latin-1"))
            else:
                seen.body(message.get("body", b""))
            await send(message)

        try:
            if self._limits and (refusal := self._limits.refusal(scope)):
                await _refuse(send_seen, refusal, path)
            elif self._admits(path, headers.get(b"authorization", b"")):
                await self._app(scope, receive, send_seen)
            else:
                await _refuse(send_seen, _UNAUTHORIZED, path)
        finally:
            if watch := state.get("watch"):
                watch.close()
            if path not in _OPEN:
                took = round((time.monotonic() - seen.started_s) * 1000, 1)
                said = seen.end()
                if reason := state.get("route_reason"):
                    said |= {"model": seen.model, "reason": reason}
                log("request", method=scope["method"], path=path, ms=took, **said)


async def _refuse(send: Send, error: RouterError, path: str) -> None:
    body = json.dumps(error.ollama_body() if path.startswith("/api/") else error.body()).encode()
    headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status == _UNAUTHORIZED.status:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
