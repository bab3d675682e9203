"""API keys: made, listed, rotated and revoked. The token is shown once; the registry keeps its SHA-256."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Row, insert, select, update

from domains.errors import Conflict, InvalidData, UnknownKey
from domains.registry.database import Verbs, advance, now
from domains.registry.records import domain_row, note
from domains.registry.tables import api_keys

Verb = Literal["rank", "feedback", "catalogue", "admin"]
VERBS: tuple[Verb, ...] = get_args(Verb)
MOST_KEYS = 10_000


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """What a caller may do."""

    id: str
    name: str
    digest: str = field(repr=False)
    """SHA-256 of the token in hex. A token has 256 random bits, so that no salt and no slow hash is needed."""
    domains: tuple[str, ...]
    """Where it counts; empty means in every domain."""
    verbs: tuple[str, ...]
    per_minute: int
    """Requests a minute; 0 means no bound."""
    created_at: datetime
    created_by: str
    rotated_at: datetime | None = None
    revoked_at: datetime | None = None

    def may(self, verb: str, domain: str | None = None) -> bool:
        """Whether it allows a verb, in a domain where one is named; ``admin`` includes the other verbs."""
        return (verb in self.verbs or "admin" in self.verbs) and (domain is None or self.covers(domain))

    def covers(self, domain: str) -> bool:
        """Whether it counts in a domain."""
        return not self.domains or domain in self.domains


def digest_of(token: str) -> str:
    """The hash under which a token is kept."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


class KeyVerbs(Verbs):
    """The keys of the prediction service's callers."""

    def add_key(
        self, name: str, *, domains: Collection[str] = (), verbs: Collection[str] = VERBS, per_minute: int = 0, by: str
    ) -> tuple[ApiKey, str]:
        """Make a key; returns it and its token, which nobody can read again.

        Raises:
            UnknownDomain: one of the domains is not registered.
            InvalidData: no name, no verb, an unknown verb, or a negative quota.
            Conflict: a key that counts has the name.
        """
        unknown = [verb for verb in verbs if verb not in VERBS]
        if unknown or not verbs:
            raise InvalidData(f"verbs: {(unknown or ['none'])[0]!r} is none of {', '.join(VERBS)}", field="verbs")
        if not name.strip() or len(name) > 100:
            raise InvalidData("name: a key needs a name of at most 100 characters", field="name")
        if per_minute < 0:
            raise InvalidData("per_minute: must be 0 (no bound) or more", field="per_minute")
        token = _new_token()
        with self._database.write() as connection:
            for domain in domains:
                domain_row(connection, domain)
            if any(held.name == name for held in _keys(connection) if held.revoked_at is None):
                raise Conflict(f"a key is called {name!r} already; rotate or revoke it, or choose another name")
            key = ApiKey(
                id=secrets.token_hex(6),
                name=name,
                digest=digest_of(token),
                domains=tuple(sorted(set(domains))),
                verbs=tuple(verb for verb in VERBS if verb in verbs),
                per_minute=per_minute,
                created_at=now(),
                created_by=by,
            )
            row = {**vars(key), "domains": list(key.domains), "verbs": list(key.verbs)}
            connection.execute(insert(api_keys).values(row))
            note(connection, by, "add_key", None, before=None, after=_noted(key))
            advance(connection, "generation")
        return key, token

    def api_keys(self) -> list[ApiKey]:
        """Every key, revoked ones too, newest first."""
        with self._database.read() as connection:
            return _keys(connection)

    def revoke_key(self, id_or_name: str, *, by: str, why: str = "") -> ApiKey:
        """From now on the key counts nowhere; running services notice within a second.

        Raises UnknownKey.
        """
        with self._database.write() as connection:
            held = _key(connection, id_or_name)
            if held.revoked_at is not None:
                return held
            connection.execute(update(api_keys).where(api_keys.c.id == held.id).values(revoked_at=now()))
            after = _key(connection, held.id)
            note(connection, by, "revoke_key", None, why, before=_noted(held), after=_noted(after))
            advance(connection, "generation")
            return after

    def rotate_key(self, id_or_name: str, *, by: str) -> tuple[ApiKey, str]:
        """Give a key another token; the one before counts no more.

        Raises:
            UnknownKey: no such key.
            Conflict: it is revoked.
        """
        token = _new_token()
        with self._database.write() as connection:
            held = _key(connection, id_or_name)
            if held.revoked_at is not None:
                raise Conflict(f"key {held.name!r} is revoked; add another")
            changed = {"digest": digest_of(token), "rotated_at": now()}
            connection.execute(update(api_keys).where(api_keys.c.id == held.id).values(changed))
            after = _key(connection, held.id)
            note(connection, by, "rotate_key", None, before=_noted(held), after=_noted(after))
            advance(connection, "generation")
        return after, token


def _new_token() -> str:
    return f"graft_{secrets.token_urlsafe(32)}"


def _keys(connection: Connection) -> list[ApiKey]:
    chosen = select(api_keys).order_by(api_keys.c.created_at.desc(), api_keys.c.id).limit(MOST_KEYS)
    return [_as_key(row) for row in connection.execute(chosen)]


def _key(connection: Connection, id_or_name: str) -> ApiKey:
    found = [key for key in _keys(connection) if id_or_name in (key.id, key.name)]
    if not found:
        raise UnknownKey(f"no key has the id or the name {id_or_name!r}; `graft keys list` shows them")
    # A name may be given again once its key is revoked: the one that counts is meant.
    return next((key for key in found if key.revoked_at is None), found[0])


def _as_key(row: Row[Any]) -> ApiKey:
    values = row._asdict()
    return ApiKey(**{**values, "domains": tuple(values["domains"]), "verbs": tuple(values["verbs"])})


def _noted(key: ApiKey) -> dict[str, Any]:
    """What the audit log says of a key: never its hash."""
    return {
        "id": key.id,
        "name": key.name,
        "domains": list(key.domains),
        "verbs": list(key.verbs),
        "per_minute": key.per_minute,
        "rotated": key.rotated_at is not None and key.rotated_at.isoformat(),
        "revoked": key.revoked_at is not None,
    }
