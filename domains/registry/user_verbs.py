"""Who may sign in to the pages: added, changed, removed, and their passwords checked.

A password is kept as scrypt (RFC 7914) with a salt of its own; it never leaves this module.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Row, insert, select, update

from domains.errors import Conflict, InvalidData, UnknownUser
from domains.registry.database import Verbs, advance, now
from domains.registry.records import note
from domains.registry.tables import users

Role = Literal["viewer", "owner", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may, and more."""

LEAST_CHARACTERS = 10
MOST_CHARACTERS = 1000
_NAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,99}")
_COST, _BLOCK, _LANES = 2**15, 8, 2
"""32 MB and about 0.2 s a guess."""


@dataclass(frozen=True, kw_only=True)
class User:
    """Somebody who may sign in."""

    name: str
    role: Role
    domains: tuple[str, ...]
    """Domains that an owner was granted, besides those whose spec names them as owner."""
    has_password: bool
    session: int
    """Number of the sessions that count; those of smaller numbers have ended."""
    created_at: datetime
    created_by: str
    removed_at: datetime | None = None


class UserVerbs(Verbs):
    """The people whom the pages know, and what each may do."""

    def add_user(self, name: str, *, role: Role, password: str | None, domains: Collection[str] = (), by: str) -> User:
        """Let somebody sign in; without a password only through an identity provider that vouches for the name.

        A name that was removed comes back with what is given here and nothing of before.

        Raises:
            InvalidData: the name, the role or the password will not do.
            Conflict: the name is taken.
        """
        _check(name, role)
        written = None if password is None else _hashed(password)
        with self._database.write() as connection:
            held = _user(connection, name)
            if held is not None and held.removed_at is None:
                raise Conflict(f"a user is called {name!r} already", name=name)
            row: dict[str, Any] = {
                "role": role,
                "domains": sorted(set(domains)),
                "password": written,
                "removed_at": None,
            }
            row |= {"created_at": now(), "created_by": by, "session": 0 if held is None else held.session + 1}
            if held is None:
                connection.execute(insert(users).values(name=name, **row))
            else:
                connection.execute(update(users).where(users.c.name == name).values(row))
            return _changed(connection, by, "add_user", before=None, name=name)

    def users(self) -> list[User]:
        """Everybody who may sign in or ever might, by name."""
        with self._database.read() as connection:
            return [_as_user(row) for row in connection.execute(select(users).order_by(users.c.name))]

    def user(self, name: str) -> User:
        """Raises UnknownUser; also for one who was removed."""
        with self._database.read() as connection:
            return _present(connection, name)

    def change_user(
        self, name: str, *, role: Role | None = None, domains: Collection[str] | None = None, by: str
    ) -> User:
        """Give somebody another role or other domains; what is None stays. It counts at their next click.

        Raises:
            UnknownUser: nobody has the name.
            InvalidData: there is no such role.
        """
        with self._database.write() as connection:
            held = _present(connection, name)
            _check(name, role or held.role)
            change = {"role": role or held.role, "domains": list(held.domains if domains is None else sorted(domains))}
            connection.execute(update(users).where(users.c.name == name).values(change))
            return _changed(connection, by, "change_user", before=held, name=name)

    def set_password(self, name: str, password: str, *, by: str) -> User:
        """Give somebody another password; all of their sessions end.

        Raises:
            UnknownUser: nobody has the name.
            InvalidData: the password is too short or too long.
        """
        written = _hashed(password)
        with self._database.write() as connection:
            held = _present(connection, name)
            change = {"password": written, "session": held.session + 1}
            connection.execute(update(users).where(users.c.name == name).values(change))
            return _changed(connection, by, "set_password", before=held, name=name)

    def remove_user(self, name: str, *, by: str, why: str = "") -> User:
        """Let somebody in no more; their open pages stop answering within seconds.

        Raises UnknownUser.
        """
        with self._database.write() as connection:
            held = _present(connection, name)
            change = {"removed_at": now(), "session": held.session + 1, "password": None}
            connection.execute(update(users).where(users.c.name == name).values(change))
            return _changed(connection, by, "remove_user", before=held, name=name, why=why)

    def end_sessions(self, name: str, *, by: str) -> User:
        """End all of somebody's sessions, as a sign out does.

        Raises UnknownUser.
        """
        with self._database.write() as connection:
            held = _present(connection, name)
            connection.execute(update(users).where(users.c.name == name).values(session=held.session + 1))
            return _changed(connection, by, "end_sessions", before=held, name=name)

    def user_of_password(self, name: str, password: str) -> User | None:
        """Whose name and password these are; None, after the same time, where they do not belong together."""
        with self._database.read() as connection:
            row = connection.execute(select(users).where(users.c.name == name)).one_or_none()
        kept = row.password if row is not None and row.removed_at is None else None
        fits = _fits(password, kept or _nobody())
        return _as_user(row) if row is not None and kept is not None and fits else None


def _check(name: str, role: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidData(
            f"name: {name[:100]!r} is no user name: small letters, digits and . _ @ + -, at most 100", field="name"
        )
    if role not in ROLES:
        raise InvalidData(f"role: {role!r} is none of {', '.join(ROLES)}", field="role")


def _hashed(password: str) -> str:
    """Raises InvalidData."""
    if not LEAST_CHARACTERS <= len(password) <= MOST_CHARACTERS:
        limits = f"{LEAST_CHARACTERS} to {MOST_CHARACTERS:,}"
        raise InvalidData(f"password: must have {limits} characters", field="password")
    salt = secrets.token_bytes(16)
    digest = _scrypt(password, salt, _COST, _BLOCK, _LANES)
    return "$".join(["scrypt", str(_COST), str(_BLOCK), str(_LANES), *(_text(part) for part in (salt, digest))])


def _fits(password: str, kept: str) -> bool:
    _, cost, block, lanes, salt, digest = kept.split("$")
    tried = _scrypt(password[:MOST_CHARACTERS], base64.b64decode(salt), int(cost), int(block), int(lanes))
    return hmac.compare_digest(tried, base64.b64decode(digest))


def _scrypt(password: str, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
    most = 256 * cost * block  # twice what the parameters need; Python's own bound is below that
    secret = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(secret, salt=salt, n=cost, r=block, p=lanes, maxmem=most, dklen=32)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


@cache
def _nobody() -> str:
    """What a password is compared with where there is none, so that an unknown name takes as long as a known one."""
    return _hashed(secrets.token_urlsafe(32))


def _user(connection: Connection, name: str) -> User | None:
    row = connection.execute(select(users).where(users.c.name == name)).one_or_none()
    return None if row is None else _as_user(row)


def _present(connection: Connection, name: str) -> User:
    found = _user(connection, name)
    if found is None or found.removed_at is not None:
        raise UnknownUser(f"no user is called {name!r}; `graft users list` shows them", name=name)
    return found


def _changed(connection: Connection, by: str, what: str, *, before: User | None, name: str, why: str = "") -> User:
    """Note the change in this transaction; the user as of now."""
    after = _user(connection, name)
    assert after is not None, "it was written in this transaction"
    earlier = None if before is None else _noted(before)
    note(connection, by, what, None, why, user=name, before=earlier, after=_noted(after))
    advance(connection, "generation")
    return after


def _as_user(row: Row[Any]) -> User:
    values = row._asdict()
    password = values.pop("password")
    return User(**{**values, "domains": tuple(values["domains"])}, has_password=password is not None)


def _noted(user: User) -> dict[str, Any]:
    """What the audit log says of somebody: never the password's hash."""
    kept = {"role": user.role, "domains": list(user.domains), "has_password": user.has_password}
    return {**kept, "session": user.session, "removed": user.removed_at is not None}
