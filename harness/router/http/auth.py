"""Authentication: router keys for models, the admin key for administration; a request id for each request."""

import asyncio
import hashlib
import hmac
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harness.router.config import RouterConfig
from harness.router.errors import RouterError
from harness.router.http.json_body import ADMIN_PATHS, respond_error
from harness.router.http.limits import LimitedProtocol, check_head
from harness.router.http.metrics import Metrics
from harness.router.http.quotas import ADMIN, NO_KEY, Quotas
from harness.router.http.stream_stats import RequestStats
from harness.router.json_log import log, request_id

_WITHOUT_KEY = frozenset({"/healthz", "/readyz"})
"""They answer yes or no and nothing else."""
_WITH_ANY_KEY = frozenset({"/metrics"})
"""Prometheus is neither a user nor an administrator."""
_DASHBOARD = "/dashboard"
"""Has its own login: a browser sends no bearer key."""
_APIS = {"v1": "openai", "api": "ollama", "admin": "admin"}
"""Label ``api`` of the metrics by a path's first part."""
_MODEL_APIS = ("openai", "ollama")
_REQUEST_ID = re.compile(rb"^[\w.:-]{1,64}$")


def _name(key: str) -> str:
    """Names a key in logs and counts without showing it."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]


class Gate:
    """Outermost ASGI layer: request id, head limits, bearer key and its quota, one log line and one count.

    A response to a request whose body has not come whole ends the connection; the rest of the body is read
    and thrown away first, or the client, which still sends, might never see the response.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        router_keys: Sequence[str],
        admin_key: str,
        metrics: Metrics,
        config: RouterConfig,
    ) -> None:
        self.metrics = metrics
        self._app = app
        self._router_keys = [(_name(key), key.encode()) for key in router_keys]
        self._admin_keys = [(ADMIN, admin_key.encode())]
        self._quotas = Quotas(config, len(router_keys), metrics)
        self._config = config

    def _key_name(self, path: str, authorization: bytes) -> str:
        """The name of the request's key.

        Raises:
            RouterError: it has none that is right for its path (401).
        """
        if path in _WITHOUT_KEY or path == _DASHBOARD or path.startswith(_DASHBOARD + "/"):
            return NO_KEY
        scheme, _, client_key = authorization.partition(b" ")
        if path in _WITH_ANY_KEY:
            keys = self._admin_keys + self._router_keys
        else:
            keys = self._admin_keys if path.startswith(ADMIN_PATHS) else self._router_keys
        # Every key is compared, so that the time taken does not show which one was close.
        matches = [name for name, key in keys if hmac.compare_digest(client_key.strip(), key)]
        if scheme.lower() != b"bearer" or not matches:
            raise RouterError(401, "unauthorized", "missing or wrong bearer key for this path")
        return matches[0]

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
        api = _APIS.get(path.removeprefix("/").split("/", 1)[0], "other")
        for_model = api in _MODEL_APIS and scope["method"] == "POST"
        stats = RequestStats(self.metrics, api=api, request_id=current_id, for_model=for_model)
        state["stats"] = stats
        connection: LimitedProtocol | None = state.get("connection")
        body_left = False

        async def send_counted(message: Message) -> None:
            nonlocal body_left
            if message["type"] == "http.response.start":
                message["headers"] = out = list(message["headers"])
                content_type = next((value for name, value in out if name == b"content-type"), b"")
                out.append((b"x-request-id", current_id.encode()))
                if connection and connection.body_incomplete:
                    body_left = True
                    out.append((b"connection", b"close"))
                stats.begin(
                    message["status"], route=state.get("route"), content_type=content_type.decode("latin-1")
                )
            else:
                stats.body(message.get("body", b""))
                if body_left:
                    message["more_body"] = True  # its end is sent below
            await send(message)

        usage = None
        key = NO_KEY
        try:
            check_head(scope, self._config)
            key = self._key_name(path, headers.get(b"authorization", b""))
            if path not in _WITHOUT_KEY:
                state["key"] = key
                usage = state["usage"] = self._quotas.begin(key)
        except RouterError as error:
            self.metrics.refused(error)
            challenge = {"www-authenticate": "Bearer"} if error.status == 401 else {}
            await respond_error(error, path, challenge)(scope, receive, send_counted)
        else:
            await self._app(scope, receive, send_counted)
        finally:
            if watch := state.pop("watch", None):
                watch.close()
            if usage:
                usage.end()
            if path not in _WITHOUT_KEY:
                fields = stats.end()
                if reason := state.get("route_reason"):
                    fields |= {"model": stats.model, "reason": reason}
                took_ms = round((time.monotonic() - stats.started_s) * 1000, 1)
                log("request", method=scope["method"], path=path, key=key, ms=took_ms, **fields)
            if connection and body_left:
                connection.mark_idle()
                await self._discard_body(receive)
                await send({"type": "http.response.body"})

    async def _discard_body(self, receive: Receive) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.head_timeout_s):
                while (await receive()).get("more_body"):
                    pass
