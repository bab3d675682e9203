"""Who may ask the service: API keys, checked before a request's body is read.

With no key in the registry a service on loopback answers anybody, so that a first try needs none. As soon as one
exists, and always on any wider interface, ``Authorization: Bearer <token>`` is asked for everywhere but at the probes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Response

from deployment.messages import ErrorAnswer, ErrorBody
from domains.registry.key_verbs import ApiKey, digest_of
from domains.registry.registry import Registry
from orchestrator.credentials import kept_secret, read_secret
from orchestrator.hosts import is_loopback, names_this_machine, seen_from
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

SEEN_EVERY_S = 0.4
"""How often the registry's keys are read: a key that is revoked stops counting within a second."""
OPEN = frozenset({"/livez", "/readyz", "/healthz"})
"""Probes, which carry nothing."""
KEY = "graft.key"
"""Name of the caller's key in a request's scope; absent where none is asked for."""

_RANK = re.compile(r"/v1/domains/(?P<domain>[^/]+)/rank")
_Scope = dict[str, Any]


class Keys:
    """The keys that count now, as of some tenths of a second ago; a registry that does not answer changes nothing."""

    def __init__(self, settings: Settings, registry: Registry | None = None) -> None:
        self._registry = registry or Registry(settings.registry_url)
        self._own_file = settings.service_key_file
        self._workers = settings.service_workers
        self._wide = not is_loopback(settings.bind_host)
        self._known: dict[str, ApiKey] | None = None
        self._any = False
        self._own = ""
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Read the keys, and go on reading them in a thread of its own; makes the stack's own where there is none."""
        with contextlib.suppress(OSError):  # a replica may only read the home folder
            kept_secret(self._own_file)
        self.look()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="keys")
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()

    def look(self) -> None:
        """Read the keys now."""
        try:
            keys = self._registry.api_keys()
            own = read_secret(self._own_file)
        except Exception:
            if self._known is None:
                logger.warning("keys not read; nobody is let in until they are", exc_info=True)
            return
        self._any = bool(keys)
        self._own = digest_of(own) if own else ""
        self._known = {key.digest: key for key in keys if key.revoked_at is None}

    def refusal(
        self, method: str, path: str, token: str | None, *, from_here: bool = True
    ) -> tuple[ApiKey | None, Response | None]:
        """The caller's key, where one is asked for, and the answer that refuses the request.

        Args:
            from_here: whether the caller is on this machine, for all that can be seen.
        """
        known = self._known
        if path in OPEN or (known is not None and not self._any and not self._wide and from_here):
            return None, None
        if known is None:
            return None, _refused(503, "unavailable", "the API keys cannot be read yet; try again", after_s=1)
        digest = digest_of(token) if token else ""
        if self._own and digest == self._own:  # the stack's own processes
            return None, None
        key = known.get(digest)
        if key is None:
            what = "it is unknown, rotated or revoked" if token else "send Authorization: Bearer <token>"
            return None, _refused(401, "unauthorised", f"an API key is needed; {what}")
        return key, self._refusal_of(key, *_asked(method, path))

    def _refusal_of(self, key: ApiKey, verb: str, domain: str | None) -> Response | None:
        if verb and not key.may(verb, domain):
            where = f" in domain {domain!r}" if domain and not key.covers(domain) else ""
            return _refused(403, "forbidden", f"key {key.name!r} does not allow {verb}{where}")
        wait_s = self._take(key)
        if wait_s:
            return _refused(429, "quota", f"key {key.name!r} allows {key.per_minute} a minute", after_s=wait_s)
        return None

    def _take(self, key: ApiKey) -> int:
        """Take one request from a key's quota; seconds until the next one where it is used up."""
        if not key.per_minute:
            return 0
        most = max(1.0, key.per_minute / self._workers)
        now = time.monotonic()
        with self._lock:
            left, since = self._buckets.get(key.id, (most, now))
            left = min(most, left + (now - since) * most / 60)
            self._buckets[key.id] = (left - 1 if left >= 1 else left, now)
        return 0 if left >= 1 else math.ceil((1 - left) * 60 / most)

    def _watch(self) -> None:
        while not self._stop.wait(SEEN_EVERY_S):
            self.look()


class RequireKey:
    """ASGI middleware: refuses what the caller's key does not allow, and notes the key in the request's scope."""

    def __init__(self, app: Any, keys: Callable[[], Keys | None]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(
        self, scope: _Scope, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        if scope["type"] == "http":
            keys = self._keys()
            refusal: Response | None
            if keys is None:
                open_path = scope["path"] in OPEN
                refusal = None if open_path else _refused(503, "unavailable", "the service is starting", after_s=1)
            else:
                asked = scope["method"], scope["path"], _token(scope)
                scope[KEY], refusal = keys.refusal(*asked, from_here=_from_here(scope))
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _asked(method: str, path: str) -> tuple[str, str | None]:
    """The verb and the domain of a request; no verb where any key will do."""
    if found := _RANK.fullmatch(path):
        return "rank", found["domain"]
    if path == "/v1/feedback":
        return "feedback", None
    if path.startswith("/v1/"):
        return "catalogue" if method in ("GET", "HEAD") else "", None
    return "admin", None


def _token(scope: _Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            return token.strip() if scheme.lower() == "bearer" else None
    return None


def _from_here(scope: _Scope) -> bool:
    """Whether nobody but this machine can have sent it; a browser shows another site's page by its ``Host``."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    client = scope.get("client")
    address = seen_from(client[0] if client else None, headers)
    return is_loopback(address) and names_this_machine(headers.get("host", "localhost"))


def _refused(status: int, code: str, message: str, *, after_s: int = 0) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if after_s:
        headers["Retry-After"] = str(after_s)
    answer = ErrorAnswer(error=ErrorBody(code=code, message=message))
    return Response(answer.as_json(), status, headers, "application/json")
