"""An id that a caller chose names one ranking: held in the registry against every other process, while it is scored."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from deployment.engine.feedback import Feedback
from deployment.messages import RankRequest

WAIT_S = 0.25
"""How long an answer under an id of the caller's, once scored, waits for the registry to say that the id is free."""
REST_S = 5.0
"""How long no answer waits, after one did in vain."""


class Claims:
    """The claims of one process; its verbs are called on the event loop."""

    def __init__(self, feedback: Feedback) -> None:
        self._feedback = feedback
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="claims")
        self._rest_until = 0.0

    def begin(self, request: RankRequest, domain: str) -> asyncio.Future[None] | None:
        """Begin to hold the caller's id; None where there is nothing to wait for.

        Raises:
            RequestIdTaken: this process knows already that the id is another's.
        """
        name = request.request_id
        if name is None or self._feedback.knows(name):
            self._know(request, domain)
            return None
        if time.monotonic() < self._rest_until:
            return None
        claim = partial(self._feedback.claim, name, user_id=request.user_id, domain=domain)
        return asyncio.get_running_loop().run_in_executor(self._threads, claim)

    async def end(self, claim: asyncio.Future[None] | None, request: RankRequest, domain: str) -> None:
        """Make sure that the id names one ranking alone, in all processes; while the registry is away, in this one.

        Raises:
            RequestIdTaken: the id is another's.
        """
        if claim is not None:
            try:
                await asyncio.wait_for(claim, WAIT_S)
            except Exception:
                # No answer waits for the registry: the log keeps the first ranking of an id whatever is answered.
                self._rest_until = time.monotonic() + REST_S
        self._know(request, domain)

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _know(self, request: RankRequest, domain: str) -> None:
        if request.request_id is not None:
            self._feedback.remember(request.request_id, user_id=request.user_id, domain=domain)
