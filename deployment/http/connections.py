"""Connections that give up on callers who are slow, too long or ambiguous: uvicorn's HTTP protocol with limits.

What is wrong before there is a request that the app could answer is answered here, in the one shape of errors. So is
what is turned away for lack of room: it must cost next to nothing, or nothing is left for the others.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, Literal

import httptools
from fastapi import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from deployment.http.envelope import OTHER, SAFE_HEADERS, Envelope
from deployment.http.replies import error, fault
from deployment.messages import MOST_BYTES
from deployment.records.metrics import Metrics
from orchestrator.errors import Overloaded
from orchestrator.settings import Settings

OVERLOADED: list[Callable[[], bool]] = []
"""What says whether the next request to rank would be turned away; empty before the service has started."""
HEAD_LIMIT_S = 10.0
"""A connection whose next request line and headers are not here by then is closed."""
TAKE_LIMIT_S = 20.0
"""A caller who does not take its answers in by then is let go."""
LINGER_S = 5.0
"""A connection that ends while its caller still sends takes in and throws away what comes for so long: a caller whose
bytes are refused would not read the answer."""
MOST_PIPELINED = 100
"""Requests that may wait on a connection for the one before; the connection ends after them."""
MOST_URL_BYTES = 8 * 1024
MOST_HEAD_BYTES = 64 * 1024

ONCE = (b"host", b"content-length", b"transfer-encoding", b"content-type", b"content-encoding", b"authorization")
"""Headers that count here; of two, a proxy on the way might have read the other one."""
_UPGRADE = (b"connection", b"upgrade", b"http2-settings")

_Refusal = tuple[int, str, str]
_BAD: _Refusal = (400, "bad_request", "this is not a request of HTTP/1.1")


class BoundedConnection(HttpToolsProtocol):
    """One connection: the app bounds bodies, this bounds heads and the pauses in between (``service_keep_alive_s``)."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.timeout_keep_alive = KEEP_ALIVE_S
        self._part: Literal["none", "head", "body"] = "none"
        """Of which part of a request the next byte is, as far as one is known to come."""
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._take_timer: asyncio.TimerHandle | None = None
        self._refusal = _BAD
        self._deaf = False
        """Whether what still comes is thrown away."""
        self._ending = False
        self._passes_over = False
        """Whether the body that comes belongs to a request that was turned away."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._head_is_here()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Called when the caller leaves its answers unread."""
        super().pause_writing()
        self._take_timer = self.loop.call_later(TAKE_LIMIT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Called when it reads on."""
        super().resume_writing()
        if self._take_timer is not None:
            self._take_timer.cancel()
            self._take_timer = None

    def data_received(self, data: bytes) -> None:
        """Take what came; a connection on which nothing is being answered stays open for a limited time alone."""
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        began_in_head = self._part == "head"
        try:
            self.parser.feed_data(data)
            if began_in_head and self._part == "head":
                self._count(len(data))
        except httptools.HttpParserUpgrade as upgrade:
            self._without_upgrade(data[upgrade.args[0] :])
            return
        except (httptools.HttpParserError, _Refused) as fault:
            if self._refusal is _BAD and not isinstance(fault, httptools.HttpParserCallbackError):
                self._refusal = *_BAD[:2], f"{_BAD[2]}: {fault}"
            self._give_up()
        busy = self.cycle is not None and not self.cycle.response_complete
        if self._deaf or self.transport.is_closing() or busy:
            return
        if self._part != "none" or self.cycle is None:
            self._wait_for_head()
        elif self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_message_begin(self) -> None:
        """Called by the parser at the first byte of a request."""
        self._part, self._head_bytes = "head", 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Called by the parser with a piece of the path."""
        super().on_url(url)
        if len(self.url) > MOST_URL_BYTES:
            self._refuse(414, "url_too_long", f"a path with its query may have {MOST_URL_BYTES} bytes at most")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser with a whole header."""
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Called by the parser at the end of the headers."""
        self._head_is_here()
        self._check_head()
        if self.parser.should_upgrade():
            return  # the parser stops here; see `_without_upgrade`
        if len(self.pipeline) >= MOST_PIPELINED:
            raise _Refused
        if self._would_be_turned_away():
            self._part = "body"
            self._turn_away()
            return
        super().on_headers_complete()
        self._part = "body"
        self.cycle.transport = _LastWords(self)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """Called by the parser with a piece of the body."""
        if not self._passes_over:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Called by the parser at the end of the body; one that was refused earlier may still have been coming."""
        if self.parser.should_upgrade():
            return
        self._part = "none"
        self._head_is_here()
        if not self._passes_over:
            super().on_message_complete()
            return
        self._passes_over = False
        if not self.parser.should_keep_alive():
            self._deaf = True
            self._close()

    def on_response_complete(self) -> None:
        """Called when an answer is out: the next request of the connection is due."""
        if self._ending:
            return
        super().on_response_complete()
        if self._part != "none" and self.cycle.response_complete:
            # The rest of a body that was not waited for, or a piece of the next head.
            self._unset_keepalive_if_required()
            self._wait_for_head()

    def end(self) -> None:
        """Close the connection, once its caller has had the chance to read the answer."""
        if self._part == "none":
            self._close()
        elif not self._ending:
            self._deaf = self._ending = True
            self._head_is_here()
            self.flow.resume_reading()
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.loop.call_later(LINGER_S, self._close)

    def timeout_keep_alive_handler(self) -> None:
        """Called when the connection has been idle for long enough."""
        self._close()

    def _close(self) -> None:
        self.transport.close()
        if self.transport.get_write_buffer_size():  # closed once its caller has read that, if it ever does
            self.loop.call_later(TAKE_LIMIT_S, self.transport.abort)

    def _would_be_turned_away(self) -> bool:
        """Whether there is no room for a ranking, and its body is so small that it can be passed over as it comes.

        The app refuses what comes behind a request that is still being answered, or asks before it sends its body.
        """
        if not (OVERLOADED and OVERLOADED[0]()) or self.parser.get_method() != b"POST" or not _RANK.fullmatch(self.url):
            return False
        if self.expect_100_continue or (self.cycle is not None and not self.cycle.response_complete):
            return False
        lengths = [value for name, value in self.headers if name == b"content-length"]
        return bool(lengths) and lengths[0].isdigit() and int(lengths[0]) <= MOST_BYTES

    def _turn_away(self) -> None:
        self._passes_over = True
        closes = not self.parser.should_keep_alive()
        self.transport.write(_written(_BUSY, self.server_state.default_headers, closes=closes))
        Metrics.requested("/v1/domains/{domain}/rank", "POST", _BUSY.status_code, 0.0)

    def _check_head(self) -> None:
        names = [name for name, _ in self.headers]
        version = self.parser.get_http_version()
        if self.parser.get_method() == b"CONNECT":
            self._refuse(400, "bad_request", "this is no proxy")
        coding = b"".join(value for name, value in self.headers if name == b"transfer-encoding").lower()
        for name in ONCE:
            if names.count(name) > 1:
                self._refuse(400, "bad_request", f"the header {name.decode()} comes twice")
        if version not in ("1.0", "1.1"):
            self._refuse(505, "http_version", f"HTTP/{version} is not spoken here, HTTP/1.1 is")
        if version == "1.1" and b"host" not in names:
            self._refuse(400, "bad_request", "the header host is missing")
        if coding and (coding != b"chunked" or version == "1.0"):
            self._refuse(400, "bad_request", "a body comes with its content-length, or chunked and nothing else")

    def _count(self, head_bytes: int) -> None:
        self._head_bytes += head_bytes
        if self._head_bytes > MOST_HEAD_BYTES:
            self._refuse(431, "headers_too_large", f"headers may have {MOST_HEAD_BYTES} bytes at most")

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Stop the parser."""
        self._refusal = status, code, message
        raise _Refused

    def _give_up(self) -> None:
        """Answer what cannot be parsed, after what was asked before it, and end the connection."""
        self._deaf = True
        cycle = self.cycle
        in_body, self._part = self._part == "body", "body"  # more of it may be on its way
        if not in_body and cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False
            return
        if in_body and self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline[0] = cycle, Envelope(error(*self._refusal, headers={"Connection": "close"}))
            return
        if in_body:
            cycle.disconnected = True
            cycle.message_event.set()
        if not in_body or not cycle.response_started:
            self.transport.write(_written(error(*self._refusal), self.server_state.default_headers))
            Metrics.requested(OTHER, OTHER, self._refusal[0], 0.0)
        self.end()

    def _without_upgrade(self, rest: bytes) -> None:
        """Take a request that offers another protocol as if it did not: the parser leaves its body out otherwise."""
        closes = any(b"close" in value.lower() for name, value in self.headers if name == b"connection")
        headers = [header for header in self.headers if header[0] not in _UPGRADE]
        headers += [(b"connection", b"close")] if closes else []
        head = b"%s %s HTTP/1.1\r\n" % (self.parser.get_method(), self.url)
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(head + b"".join(b"%s: %s\r\n" % header for header in headers) + b"\r\n" + rest)

    def _wait_for_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_LIMIT_S, self._head_is_late)

    def _head_is_late(self) -> None:
        if self._part == "head":
            self._refusal = 408, "too_slow", f"the headers did not arrive within {HEAD_LIMIT_S:.0f} s"
            self._give_up()
        else:
            self._close()

    def _head_is_here(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Refused(Exception):
    """The head of a request cannot be taken."""


class _LastWords:
    """A transport for one request and its answer, which leaves to the connection how it ends."""

    def __init__(self, connection: BoundedConnection) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.end


def _written(answer: Response, headers: list[tuple[bytes, bytes]], *, closes: bool = True) -> bytes:
    """An answer in the bytes of HTTP/1.1; the last one of its connection where it closes."""
    lines = [*headers, *answer.raw_headers, *SAFE_HEADERS, *([(b"connection", b"close")] if closes else [])]
    head = b"".join(b"%s: %s\r\n" % line for line in lines)
    return STATUS_LINE[answer.status_code] + head + b"\r\n" + bytes(answer.body)


_BUSY = fault("", Overloaded("too many requests are waiting; try again shortly"))
_BUSY.headers["Retry-After"] = "1"
_RANK = re.compile(rb"/v1/domains/[^/?]+/rank(\?.*)?")
KEEP_ALIVE_S = Settings().service_keep_alive_s
