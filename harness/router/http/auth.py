"""Authentication: router keys for models, the admin key for administration; a request id for each request."""

import hmac
import os
import re
import time
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harness.router.config import RouterConfig
from harness.router.errors import RouterError
from harness.router.http.json_body import respond_error
from harness.router.http.limits import check_head
from harness.router.http.metrics import Metrics
from harness.router.http.stream_stats import RequestStats
from harness.router.json_log import log, request_id

_WITHOUT_KEY = frozenset({"/healthz", "/readyz"})
"""They answer yes or no and nothing else."""
_WITH_ANY_KEY = frozenset({"/metrics"})
"""Prometheus is neither a user nor an administrator."""
_ADMIN = "/admin/"
_DASHBOARD = "/dashboard"
"""Has its own login: a browser sends no bearer key."""
_APIS = {"v1": "openai", "api": "ollama", "admin": "admin"}
"""Label ``api`` of the metrics by a path's first part."""
_MODEL_APIS = ("openai", "ollama")
_REQUEST_ID = re.compile(rb"^[\w.:-]{1,64}$")


class Gate:
    """Outermost ASGI layer: request id, head limits, bearer key, one log line and one count per request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        router_keys: Sequence[str],
        admin_key: str,
        metrics: Metrics,
        config: RouterConfig,
    ) -> None:
        self._app = app
        self._router_keys = [key.encode() for key in router_keys]
        self._admin_keys = [admin_key.encode()]
        self._metrics = metrics
        self._config = config

    def _check_key(self, path: str, authorization: bytes) -> None:
        if path in _WITHOUT_KEY or path == _DASHBOARD or path.startswith(_DASHBOARD + "/"):
            return
        scheme, _, client_key = authorization.partition(b" ")
        if path in _WITH_ANY_KEY:
            keys = self._router_keys + self._admin_keys
        else:
            keys = self._admin_keys if path.startswith(_ADMIN) else self._router_keys
        # Every key is compared, so that the time taken does not show which one was close.
        matches = [hmac.compare_digest(client_key.strip(), key) for key in keys]
        if scheme.lower() != b"bearer" or not any(matches):
            raise RouterError(401, "unauthorized", "missing or wrong bearer key for this path")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, headers = scope["path"], dict(scope["headers"])
        client_id = headers.get(b"x-request-id", b"")
        current_id = client_id.decode() if _REQUEST_ID.match(client_id) else os.urandom(16).hex()
        request_id.set(current_id)
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = current_id
        api = _APIS.get(path.split("/", 2)[1], "other")
        for_model = api in _MODEL_APIS and scope["method"] == "POST"
        stats = RequestStats(self._metrics, api=api, request_id=current_id, for_model=for_model)
        state["stats"] = stats

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = out = list(message["headers"])
                content_type = next((value for name, value in out if name == b"content-type"), b"")
                out.append((b"x-request-id", current_id.encode()))
                stats.begin(
                    message["status"], route=state.get("route"), content_type=content_type.decode("latin-1")
                )
            else:
                stats.body(message.get("body", b""))
            await send(message)

        try:
            check_head(scope, self._config)
            self._check_key(path, headers.get(b"authorization", b""))
        except RouterError as error:
            challenge = {"www-authenticate": "Bearer"} if error.status == 401 else {}
            await respond_error(error, path, challenge)(scope, receive, send_counted)
        else:
            await self._app(scope, receive, send_counted)
        finally:
            if watch := state.get("watch"):
                watch.close()
            if path not in _WITHOUT_KEY:
                fields = stats.end()
                if reason := state.get("route_reason"):
                    fields |= {"model": stats.model, "reason": reason}
                took_ms = round((time.monotonic() - stats.started_s) * 1000, 1)
                log("request", method=scope["method"], path=path, ms=took_ms, **fields)
