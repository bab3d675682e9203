"""What happens to a request before its path is known: too much, too slow, packed, of another kind, or too many of them.

A body is read whole here, in bounds, so nothing behind it waits for a caller. What would be turned away for lack of
room is turned away before its body is read.
"""

from __future__ import annotations

import asyncio
import codecs
import re
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

from fastapi import Response

from deployment.http.replies import error, fault
from deployment.records.metrics import Metrics
from orchestrator.errors import Overloaded

if TYPE_CHECKING:
    from deployment.engine.serving import Serving

BODY_LIMIT_S = 20.0
"""A body that has not arrived by then is given up."""
DRAINED_BYTES = 32 * 1024 * 1024
DRAIN_LIMIT_S = 5.0
"""Of a refused body so much is taken in and thrown away: a caller that still writes would not read the answer."""

OTHER = "other"
"""The label in the metrics of every path and method that does not exist here: callers must not make labels."""
_METHODS = frozenset(("GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"))
_RANK = re.compile(r"/v1/domains/[^/]+/rank")

Receive = Callable[[], Awaitable[Any]]


class Envelope:
    """The outermost layer of the app: counts every request, answers every exception, reads every body.

    Args:
        serving: gives what serves requests; raises RuntimeError before it has started.
        most_bytes: of a body, packed or unpacked.
    """

    def __init__(self, app: Any, serving: Callable[[], Serving], most_bytes: int) -> None:
        self._app = app
        self._serving = serving
        self._most = most_bytes

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 0

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                refusal, receive = await self._open(scope, receive)
                if refusal is None:
                    await self._app(scope, receive, noted)
                else:
                    await refusal(scope, receive, noted)
            except _HungUp:
                return
            except Exception as raised:
                if status:  # half of an answer is out: only the connection can say that it is none
                    raise
                await fault(scope["path"], raised)(scope, receive, noted)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else OTHER
            Metrics.requested(_template(scope), method, status, time.perf_counter() - began)

    async def _open(self, scope: Any, receive: Receive) -> tuple[Response | None, Receive]:
        """A refusal, or what gives the app the whole body."""
        if scope["method"] != "POST" or not scope["path"].startswith("/v1/"):
            return None, receive
        if _RANK.fullmatch(scope["path"]) and self._serving().overloaded:
            return fault(scope["path"], Overloaded("too many requests are waiting; try again shortly")), receive
        headers = dict(reversed(scope["headers"]))
        body = b""
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
        declared = headers.get(b"content-length", b"0")
        too_large = declared.isdigit() and int(declared) > self._most
        refusal = self._too_large() if too_large else _unknown_kind(headers, encoding)
        if refusal is None:
            try:
                async with asyncio.timeout(BODY_LIMIT_S):
                    body, whole = await _read(receive, self._most)
            except TimeoutError:
                message = f"the body did not arrive within {BODY_LIMIT_S:.0f} s"
                return error(408, "too_slow", message, headers={"Connection": "close"}), receive
            if whole:
                refusal, body = self._unpacked(body, encoding)
                return refusal, _giving(body.removeprefix(codecs.BOM_UTF8))
            refusal = self._too_large()
        elif headers.get(b"expect", b"").lower() == b"100-continue":
            return refusal, receive  # it asks before it sends: nothing is on its way
        if not await _drain(receive):
            refusal.headers["Connection"] = "close"
        return refusal, receive

    def _too_large(self) -> Response:
        return error(413, "too_large", f"a request may have {self._most} bytes at most")

    def _unpacked(self, body: bytes, encoding: str) -> tuple[Response | None, bytes]:
        if encoding == "identity":
            return None, body
        unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # gzip or zlib, by its head
        try:
            plain = unpack.decompress(body, self._most + 1)
        except zlib.error:
            plain = None
        if plain is not None and len(plain) > self._most:
            return error(413, "too_large", f"a request may have {self._most} bytes at most, unpacked"), b""
        if plain is None or not unpack.eof or unpack.unused_data:
            message = f"the body is not one whole {encoding} stream"
            return error(422, "invalid_request", message, field="content-encoding"), b""
        return None, plain


class _HungUp(Exception):
    """The caller left before the whole request was here."""


def _unknown_kind(headers: dict[bytes, bytes], encoding: str) -> Response | None:
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        message = f"content-encoding {encoding[:60]!r} is not known here; send gzip, deflate or none"
        return error(415, "unsupported_encoding", message, field="content-encoding")
    kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    # Not tolerated where it is missing: a page of another origin can send such a body without asking first.
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return None
    message = f"the body must come with content-type: application/json, not {kind[:60] or 'none'}"
    return error(415, "unsupported_media_type", message, field="content-type")


async def _read(receive: Receive, most: int) -> tuple[bytes, bool]:
    """A body, and whether it ended within ``most`` bytes."""
    parts, held = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _HungUp
        parts.append(message.get("body", b""))
        held += len(parts[-1])
        if held > most:
            return b"", False
        if not message.get("more_body"):
            return b"".join(parts), True


async def _drain(receive: Receive) -> bool:
    """Throw away what still comes; whether it came to its end in bounds."""
    taken = 0
    try:
        async with asyncio.timeout(DRAIN_LIMIT_S):
            while taken < DRAINED_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _HungUp
                taken += len(message.get("body", b""))
                if not message.get("more_body"):
                    return True
    except TimeoutError:
        pass
    return False


def _giving(body: bytes) -> Receive:
    messages: Iterator[dict[str, Any]] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        return next(messages, {"type": "http.disconnect"})

    return receive


def _template(scope: Any) -> str:
    """The path with its parameters' names; one word for all that do not exist."""
    if _RANK.fullmatch(scope["path"]):
        return "/v1/domains/{domain}/rank"
    route = scope.get("route")
    return route.path if route is not None else OTHER
