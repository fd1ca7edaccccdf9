"""The handlers of ``/dashboard``: a login, one page, and the events that fill it."""

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import Context
from importlib.resources import files
from string import Template
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from harness.router.http.disconnect import read_body
from harness.router.json_log import log

COOKIE = "llama_dashboard"
LOGIN_S = 12 * 3600
_SIGNED = b"llama-router dashboard session\0"
"""What a signature is for: the key signs nothing else with it."""
_SNAPSHOT_PERIOD_S = 1.0
_PATH = "/dashboard"
_FORM_BYTES = 4096
_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Feed:
    """Takes one snapshot a second for all viewers together, none without a viewer, and sends the newest.

    A viewer that reads slowly misses snapshots; it never gets an old one.

    Args:
        take: gives one snapshot, in one line.
        period_s: pause between two snapshots, seconds.
    """

    def __init__(self, take: Callable[[], Awaitable[str]], period_s: float = _SNAPSHOT_PERIOD_S) -> None:
        self._take = take
        self._period_s = period_s
        self._event = b""
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self.viewers = 0

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events for one viewer, until it leaves or the router stops."""
        self.viewers += 1
        try:
            if not self.running:
                self._changed = asyncio.Event()
                # Its log lines do not carry the request id of the viewer that happened to come first.
                self._task = asyncio.create_task(self._run(), context=Context())
                self._task.add_done_callback(self._ended)
            elif self._event:
                yield self._event
            while not self._closing:
                await self._changed.wait()
                if self._closing or not self.running:
                    return
                yield self._event
        finally:
            self.viewers -= 1
            if not self.viewers and self._task:
                self._task.cancel()
                self._task, self._event, self._changed = None, b"", asyncio.Event()

    def close(self) -> None:
        """End the streams of all viewers: the router stops."""
        self._closing = True
        self._changed.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task is not self._task:
            return  # the last viewer has left
        if not task.cancelled() and (error := task.exception()):
            log("dashboard_snapshot_failed", level=logging.ERROR, error=repr(error))
        self._changed.set()

    async def _run(self) -> None:
        while True:
            self._event = b"data: " + (await self._take()).encode() + b"\n\n"
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
            await asyncio.sleep(self._period_s)


class Dashboard:
    """One page for operators; everything on it comes from the feed.

    A login is a signed cookie. Nothing is kept here: a restarted router accepts its viewers' cookies, and a
    new admin key ends every login.
    """

    def __init__(self, feed: Feed, admin_key: str) -> None:
        self.feed = feed
        self._key = admin_key.encode()

    @property
    def routes(self) -> list[Route]:
        return [
            Route(_PATH, self.page),
            Route(f"{_PATH}/login", self.login, methods=["POST"]),
            Route(f"{_PATH}/logout", self.logout, methods=["POST"]),
            Route(f"{_PATH}/session", self.session),
            Route(f"{_PATH}/events", self.events),
        ]

    async def page(self, request: Request) -> Response:
        """The page, or the login form without a login."""
        return _html("page.html", script="page.js") if self._logged_in(request) else _html("login.html")

    async def login(self, request: Request) -> Response:
        """Log in with the admin key of the form."""
        form = parse_qs((await read_body(request, _FORM_BYTES)).decode(errors="replace"))
        if not hmac.compare_digest(form.get("key", [""])[0].strip().encode(), self._key):
            client = request.client.host if request.client else ""
            log("dashboard_login_refused", level=logging.WARNING, client=client)
            return _html("login.html", status=401, problem="That is not the admin key.")
        expires_s = str(int(time.time()) + LOGIN_S)
        response = RedirectResponse(_PATH, 303, _HEADERS)
        response.set_cookie(
            COOKIE,
            f"{expires_s}.{self._signature(expires_s)}",
            max_age=LOGIN_S,
            path=_PATH,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    async def logout(self, request: Request) -> Response:
        """Delete the browser's cookie."""
        response = RedirectResponse(_PATH, 303, _HEADERS)
        response.delete_cookie(COOKIE, path=_PATH, httponly=True, samesite="strict")
        return response

    async def session(self, request: Request) -> Response:
        """Whether the login is valid: 204 or 401."""
        return Response(status_code=204 if self._logged_in(request) else 401, headers=_HEADERS)

    async def events(self, request: Request) -> Response:
        """Snapshots, one a second, as server-sent events."""
        if not self._logged_in(request):
            return Response(status_code=401, headers=_HEADERS)
        return StreamingResponse(self.feed.events(), media_type="text/event-stream", headers=_HEADERS)

    def _logged_in(self, request: Request) -> bool:
        expires_s, _, signature = request.cookies.get(COOKIE, "").partition(".")
        valid = hmac.compare_digest(signature.encode(), self._signature(expires_s).encode())
        return valid and time.time() < int(expires_s)

    def _signature(self, expires_s: str) -> str:
        return hmac.new(self._key, _SIGNED + expires_s.encode(), hashlib.sha256).hexdigest()


def _html(name: str, *, script: str | None = None, status: int = 200, problem: str = "") -> Response:
    nonce = secrets.token_urlsafe(18)
    text = Template(_read(name)).substitute(
        nonce=nonce, style=_read("page.css"), script=_read(script) if script else "", problem=problem
    )
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    headers = _HEADERS | {"content-security-policy": policy, "content-type": "text/html; charset=utf-8"}
    return Response(text, status, headers)


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
