"""Who is at the pages: by a password or an identity provider; without users, on loopback, whoever runs them.

A session is a signed text in the browser's cookie. What it says is looked up at every use, so that a user who was
removed, or whose password or role changed, is noticed at once.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from itsdangerous import BadData, URLSafeTimedSerializer

from domains.errors import LoginRefused, UnknownUser
from domains.registry.registry import Registry
from domains.registry.user_verbs import User
from orchestrator.acting import Actor
from orchestrator.credentials import kept_secret, os_user
from orchestrator.hosts import is_loopback
from orchestrator.settings import Settings

SESSION_S = 12 * 3600
"""A session ends after a working day, whatever is done in it."""
FREE_TRIES = 3
"""Wrong passwords for a name before the next one must wait, twice as long each time."""
LONGEST_WAIT_S = 60.0
AT_ONCE = 2
"""Passwords that are checked at the same time: each takes 32 MB and a core."""
NAMES_KEPT = 10_000
NOTED_EVERY_S = 60.0
"""How often tries for names that nobody has are noted in the audit log, which a stranger must not fill."""
WRONG = "the name and the password do not belong together"


class Logins:
    """Tells who somebody is.

    Args:
        provider: whether an identity provider may vouch for people.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        *,
        provider: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry, self._settings, self._provider, self._clock = registry, settings, provider, clock
        self._checking = threading.BoundedSemaphore(AT_ONCE)
        self._lock = threading.Lock()
        self._waits: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._strangers, self._strangers_due = 0, 0.0

    def needed(self, *, reached_from: str | None = None) -> bool:
        """Whether somebody must say who they are: there are users or a provider, or others can reach the pages.

        Args:
            reached_from: the address that asks, where one is known.
        """
        others = not is_loopback(self._settings.bind_host) or (
            reached_from is not None and not is_loopback(reached_from)
        )
        return others or self._provider or bool(self._registry.users())

    def by_os(self) -> Actor:
        """Whoever runs this process: only for pages that ``needed`` says need no login."""
        return Actor(os_user(), "admin")

    def sign_in(self, name: str, password: str) -> str:
        """The text that proves from now on that this is the user.

        Raises:
            LoginRefused: name and password do not belong together, or there were too many wrong ones.
        """
        name = name.strip().lower()[:100]
        self._refuse_if_waiting(name)
        with self._checking:
            # Others may have tried the same name while this one waited for its turn.
            self._refuse_if_waiting(name)
            user = self._registry.user_of_password(name, password)
            if user is None:
                self._note_wrong(name)
                raise LoginRefused(WRONG)
        with self._lock:
            self._waits.pop(name, None)
        self._registry.note(user.name, "sign_in", by="password")
        return str(self._signer().dumps([user.name, user.session]))

    def by_session(self, text: str | None) -> Actor:
        """Who proves to be somebody by the text that ``sign_in`` gave.

        Raises:
            LoginRefused: it is missing, forged, too old or of a session that has ended.
        """
        try:
            name, session = self._signer().loads(text or "", max_age=SESSION_S)
            user = self._registry.user(str(name))
        except (BadData, UnknownUser, ValueError, TypeError):
            raise LoginRefused("nobody is signed in") from None
        if user.session != session:
            raise LoginRefused("this session has ended; sign in again")
        return _actor(user)

    def by_provider(self, name: str) -> Actor:
        """Somebody for whom the identity provider vouches.

        Raises:
            LoginRefused: nobody of this name may sign in.
        """
        try:
            return _actor(self._registry.user(name.strip().lower()))
        except UnknownUser:
            raise LoginRefused(f"{name[:100]} may not sign in here; an admin can add them") from None

    def sign_out(self, actor: Actor) -> None:
        """End all sessions of somebody."""
        self._registry.end_sessions(actor.name, by=actor.name)

    def _signer(self) -> URLSafeTimedSerializer:
        # Read anew each time, so that a new secret in the file ends every session.
        return URLSafeTimedSerializer(kept_secret(self._settings.ui_secret_file), salt="graft session")

    def _refuse_if_waiting(self, name: str) -> None:
        with self._lock:
            _, until = self._waits.get(name, (0, 0.0))
        wait_s = until - self._clock()
        if wait_s > 0:
            raise LoginRefused(f"too many wrong passwords; try again in {wait_s:.0f} s", wait_s=round(wait_s, 1))

    def _note_wrong(self, name: str) -> None:
        with self._lock:
            tries = self._waits.pop(name, (0, 0.0))[0] + 1
            wait_s = 0.0 if tries < FREE_TRIES else min(LONGEST_WAIT_S, 2.0 ** (tries - FREE_TRIES))
            self._waits[name] = (tries, self._clock() + wait_s)
            while len(self._waits) > NAMES_KEPT:
                self._waits.popitem(last=False)
        try:
            self._registry.user(name)
        except UnknownUser:
            self._note_stranger()
        else:
            self._registry.note(name, "refuse_login", why="wrong password", tries=tries)

    def _note_stranger(self) -> None:
        """What was typed is not noted: people type passwords into the wrong field."""
        with self._lock:
            self._strangers += 1
            if self._clock() < self._strangers_due:
                return
            times, self._strangers = self._strangers, 0
            self._strangers_due = self._clock() + NOTED_EVERY_S
        self._registry.note("somebody", "refuse_login", why="no such user", tries=times)


def _actor(user: User) -> Actor:
    return Actor(user.name, user.role, user.domains)
