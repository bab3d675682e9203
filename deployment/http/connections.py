"""Connections that give up on slow callers: uvicorn's HTTP protocol with a limit on the time of a request's head."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from orchestrator.settings import Settings

HEAD_LIMIT_S = 10.0
"""A connection whose next request line and headers are not here by then is closed."""


class BoundedConnection(HttpToolsProtocol):
    """One connection: the app bounds bodies, this bounds heads and the pauses in between (``service_keep_alive_s``)."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.timeout_keep_alive = KEEP_ALIVE_S
        self._head: asyncio.TimerHandle | None = None
        self._whole = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._head_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; a connection on which nothing is being answered stays open for a limited time alone."""
        super().data_received(data)
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            return
        if not self._whole:
            self._wait_for_head()
        elif self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_message_begin(self) -> None:
        """Called by the parser at the first byte of a request."""
        self._whole = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Called by the parser at the end of the headers."""
        self._head_is_here()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by the parser at the end of the body; one that was refused earlier may still have been coming."""
        self._whole = True
        self._head_is_here()
        super().on_message_complete()

    def _wait_for_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(HEAD_LIMIT_S, self.transport.close)

    def _head_is_here(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


KEEP_ALIVE_S = Settings().service_keep_alive_s
