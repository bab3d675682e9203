"""What happens to a body before the app sees it: too large, too slow, packed, of another kind, or one too many.

A body is read whole here, in bounds, so nothing behind it waits for a caller. What would be turned away for lack of
room is turned away before its body is read.
"""

from __future__ import annotations

import asyncio
import codecs
import re
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fastapi import Response

from deployment.http.envelope import HungUp, Receive
from deployment.http.replies import error, fault
from orchestrator.errors import Overloaded

if TYPE_CHECKING:
    from deployment.engine.serving import Serving

BODY_LIMIT_S = 20.0
"""A body that has not arrived by then is given up."""
_RANK = re.compile(r"/v1/domains/[^/]+/rank")


class Bodies:
    """A layer of the app that reads the bodies of POST requests, or refuses them.

    Args:
        serving: gives what serves requests; raises Unavailable before it has started.
        most_bytes: of a body, packed or unpacked.
    """

    def __init__(self, app: Any, serving: Callable[[], Serving], most_bytes: int) -> None:
        self._app = app
        self._serving = serving
        self._most = most_bytes

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith("/v1/"):
            refusal, receive = await self._open(scope, receive)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _open(self, scope: Any, receive: Receive) -> tuple[Response | None, Receive]:
        """A refusal, or what gives the app the whole body."""
        if _RANK.fullmatch(scope["path"]) and self._serving().overloaded:
            return fault(scope["path"], Overloaded("too many requests are waiting; try again shortly")), receive
        headers = dict(reversed(scope["headers"]))
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._most:
            return self._too_large(), receive
        if (refusal := _unknown_kind(headers, encoding)) is not None:
            return refusal, receive
        try:
            async with asyncio.timeout(BODY_LIMIT_S):
                body, whole = await _read(receive, self._most)
        except TimeoutError:
            message = f"the body did not arrive within {BODY_LIMIT_S:.0f} s"
            return error(408, "too_slow", message, headers={"Connection": "close"}), receive
        if not whole:
            return self._too_large(), receive
        refusal, body = self._unpacked(body, encoding)
        return refusal, _giving(body.removeprefix(codecs.BOM_UTF8))

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
            raise HungUp
        parts.append(message.get("body", b""))
        held += len(parts[-1])
        if held > most:
            return b"", False
        if not message.get("more_body"):
            return b"".join(parts), True


def _giving(body: bytes) -> Receive:
    messages: Iterator[dict[str, Any]] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        return next(messages, {"type": "http.disconnect"})

    return receive
