"""The handlers of ``/dashboard``: a login, one page, and the events that fill it."""

import logging
import secrets
import time
from importlib.resources import files
from string import Template
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from harness.router.dashboard.attempts import Attempts
from harness.router.dashboard.feed import Feed
from harness.router.dashboard.session import COOKIE, LASTS_S, Sessions
from harness.router.dashboard.snapshot import Snapshots, Sources
from harness.router.logs import log
from harness.router.proxy.upstream import read_body

_PATH = "/dashboard"
_FORM_BYTES = 4096
_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Dashboard:
    """One page for operators; everything on it comes from the feed."""

    def __init__(self, sources: Sources, admin_key: str) -> None:
        self._sessions = Sessions(admin_key, time.time)
        self._attempts = Attempts(time.monotonic)
        self.feed = Feed(Snapshots(sources).take)

    @property
    def routes(self) -> list[Route]:
        """What an application adds."""
        return [
            Route(_PATH, self.page),
            Route(f"{_PATH}/login", self.login, methods=["POST"]),
            Route(f"{_PATH}/logout", self.logout, methods=["POST"]),
            Route(f"{_PATH}/session", self.session),
            Route(f"{_PATH}/events", self.events),
        ]

    def _known(self, request: Request) -> bool:
        return self._sessions.holds(request.cookies.get(COOKIE, ""))

    async def page(self, request: Request) -> Response:
        """The page, or the login form to those who have not logged in."""
        return _html("page.html", script="page.js") if self._known(request) else _login_form("", 200)

    async def login(self, request: Request) -> Response:
        """Begin a session for the admin key that the form brings; who has failed often waits before."""
        client = request.client.host if request.client else ""
        if wait_s := self._attempts.wait_s(client):
            return _login_form(f"Too many tries. Try again in {wait_s} s.", 429, retry_after_s=wait_s)
        form = parse_qs((await read_body(request, _FORM_BYTES)).decode(errors="replace"))
        token = self._sessions.begin(form.get("key", [""])[0])
        if token is None:
            self._attempts.failed(client)
            log("dashboard login refused", level=logging.WARNING, client=client)
            return _login_form("That is not the admin key.", 401)
        self._attempts.succeeded(client)
        answer = RedirectResponse(_PATH, 303, _HEADERS)
        secure = request.url.scheme == "https"
        answer.set_cookie(
            COOKIE, token, max_age=LASTS_S, path=_PATH, httponly=True, samesite="strict", secure=secure
        )
        return answer

    async def logout(self, request: Request) -> Response:
        """Take the browser's cookie away."""
        answer = RedirectResponse(_PATH, 303, _HEADERS)
        answer.delete_cookie(COOKIE, path=_PATH, httponly=True, samesite="strict")
        return answer

    async def session(self, request: Request) -> Response:
        """Whether the session still holds: 204 or 401."""
        return Response(status_code=204 if self._known(request) else 401, headers=_HEADERS)

    async def events(self, request: Request) -> Response:
        """Snapshots, one a second, as server-sent events."""
        if not self._known(request):
            return Response(status_code=401, headers=_HEADERS)
        return StreamingResponse(self.feed.events(), media_type="text/event-stream", headers=_HEADERS)


def _login_form(problem: str, status: int, *, retry_after_s: int | None = None) -> Response:
    answer = _html("login.html", status=status, problem=problem)
    if retry_after_s:
        answer.headers["retry-after"] = str(retry_after_s)
    return answer


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
