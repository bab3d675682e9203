"""The door of the web UI: `streamlit run ui/door.py`, or with everything else `graft up`.

Nothing behind it answers before somebody has signed in: no page, no upload, no download, no socket. Requests that
another site's page sends are refused, whoever is signed in.
"""

from __future__ import annotations

import html
import logging
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urlsplit

import streamlit as st
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from domains.errors import LoginRefused
from orchestrator.credentials import kept_secret, provider_settings
from orchestrator.errors import as_line
from orchestrator.hosts import names_this_machine, seen_from
from orchestrator.logins import SESSION_S
from orchestrator.settings import Settings
from ui import session

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
HEALTH = "/_stcore/health"
LOGIN = "/login"
UPLOADS = "/_stcore/upload_file/"
MOST_BYTES = 10_000
"""A form with a name and a password is smaller."""
HEADERS = {
    "X-Frame-Options": "SAMEORIGIN",
    "Content-Security-Policy": "frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}


class Door:
    """ASGI middleware: lets in who is signed in, and signs in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            answer = await self._answer(scope, receive)
        except Exception:
            logger.exception("the door failed to answer; nobody is let in")
            answer = PlainTextResponse("Graft cannot tell who you are now; the log of the UI says why.", 503)
        if answer is None:
            await self._app(scope, receive, send_guarded)
        elif scope["type"] == "http":
            await answer(scope, receive, send_guarded)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        """What to say instead of the pages; None lets the request in."""
        asked = HTTPConnection(scope)
        path = scope["path"]
        if path == HEALTH:
            return None
        reading = scope.get("method") in ("GET", "HEAD")
        if not reading and _foreign(asked):
            return PlainTextResponse("This request comes from a page of another site.", 403)
        address = seen_from(asked.client.host if asked.client else None, asked.headers)
        if not await run_in_threadpool(session.logins().needed, reached_from=address):
            own = names_this_machine(asked.headers.get("host", ""))
            return None if own else PlainTextResponse("Graft answers here as localhost or 127.0.0.1 alone.", 403)
        if path == LOGIN:
            return _login_page() if reading else await _sign_in(Request(scope, receive))
        return await _stranger(asked, path, page=scope["type"] == "http" and reading)


async def _stranger(asked: HTTPConnection, path: str, *, page: bool) -> Response | None:
    """What to say to somebody who has not signed in, or may not do this; None lets them in."""
    if path.startswith(UPLOADS) and not session.may_upload(path.removeprefix(UPLOADS).partition("/")[0]):
        return PlainTextResponse("An owner's role is needed to send files.", 403)
    if provider_settings(Settings().home) is not None:
        return None  # the pages themselves ask, as only Streamlit reads the provider's cookie
    try:
        await run_in_threadpool(session.logins().by_session, asked.cookies.get(session.cookie_name()))
    except LoginRefused as refusal:
        page = page and "text/html" in asked.headers.get("accept", "")
        return RedirectResponse(LOGIN, 303) if page else PlainTextResponse(as_line(refusal), 401)
    return None


async def _sign_in(request: Request) -> Response:
    if int(request.headers.get("content-length") or MOST_BYTES + 1) > MOST_BYTES:
        return PlainTextResponse("The form is too large.", 413)
    async with request.form(max_files=0, max_fields=4, max_part_size=MOST_BYTES) as form:
        name, password = str(form.get("name") or ""), str(form.get("password") or "")
    try:
        text = await run_in_threadpool(session.logins().sign_in, name, password)
    except LoginRefused as refusal:
        wait_s = refusal.details.get("wait_s")
        return _login_page(str(refusal), status=429 if wait_s else 401, wait_s=wait_s)
    answer = RedirectResponse("/", 303)
    secure = request.url.scheme == "https"
    answer.set_cookie(session.cookie_name(), text, SESSION_S, httponly=True, samesite="lax", secure=secure)
    return answer


def _foreign(asked: HTTPConnection) -> bool:
    """Whether a browser sends this for a page of another site, another port of this machine included."""
    origin = asked.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != asked.headers.get("host", "").lower():
        return True
    return asked.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")


def _login_page(problem: str = "", *, status: int = 200, wait_s: float | None = None) -> Response:
    text = (HERE / "login.html").read_text(encoding="utf-8")
    headers = {"Cache-Control": "no-store"} | ({"Retry-After": str(int(wait_s) + 1)} if wait_s else {})
    shown = f'<p class="problem" role="alert">{html.escape(problem)}</p>' if problem else ""
    return HTMLResponse(Template(text).substitute(problem=shown, logo=(HERE / "logo.svg").read_text()), status, headers)


def _secrets() -> dict[str, Any] | None:
    """What Streamlit must know of the identity provider; its cookie is signed with the secret of the pages."""
    settings = Settings()
    found = provider_settings(settings.home)
    return None if found is None else {"auth": {"cookie_secret": kept_secret(settings.ui_secret_file), **found}}


app = st.App(HERE / "app.py", secrets=_secrets(), middleware=[Middleware(Door)])
