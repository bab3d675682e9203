"""Around every request: counted, its faults answered, and what every answer carries."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

from deployment.http.replies import fault
from deployment.records.metrics import Metrics

OTHER = "other"
"""The label in the metrics of every path and method that does not exist here: callers must not make labels."""
SAFE_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
"""Of every answer: it is for its caller alone, and no browser shall guess what it is."""

_METHODS = frozenset(("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"))
_RANK = re.compile(r"/v1/domains/[^/]+/rank")

Receive = Callable[[], Awaitable[Any]]


class HungUp(Exception):
    """The caller left before the whole request was here."""


class Envelope:
    """The outermost layer of the app."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        if method == "HEAD":  # the server leaves out the body of the answer
            scope = {**scope, "method": "GET"}
        status, read = 0, False

        async def noted() -> Any:
            nonlocal read
            read = True
            return await receive()

        async def completed(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_more_headers(scope, message, read=read)]
            await send(message)

        try:
            try:
                await self._app(scope, noted, completed)
            except HungUp:
                return
            except Exception as raised:
                if status:  # half of an answer is out: only the connection can say that it is none
                    raise
                await fault(scope["path"], raised)(scope, noted, completed)
        finally:
            Metrics.requested(_template(scope), method, status, time.perf_counter() - began)


def _more_headers(scope: Any, message: Any, *, read: bool) -> list[tuple[bytes, bytes]]:
    more = list(SAFE_HEADERS)
    names = {name for name, _ in message["headers"]}
    if message["status"] in (429, 503) and b"retry-after" not in names:
        more.append((b"retry-after", b"1"))
    # Refused before it sent what it asked to send: whether its body still comes, only the caller knows.
    if not read and any(name == b"expect" for name, _ in scope["headers"]):
        more.append((b"connection", b"close"))
    return more


def _template(scope: Any) -> str:
    """The path with its parameters' names; one word for all that do not exist."""
    if _RANK.fullmatch(scope["path"]):
        return "/v1/domains/{domain}/rank"
    route = scope.get("route")
    return route.path if route is not None else OTHER
