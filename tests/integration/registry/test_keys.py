"""API keys: made, told apart, rotated, revoked; the audit log holds before and after, and never a token."""

from __future__ import annotations

import pytest

from domains.errors import Conflict, InvalidData, UnknownDomain, UnknownKey
from domains.registry.key_verbs import digest_of
from domains.registry.registry import Registry
from tests.integration.registry.fakes import spec


def test_a_key_is_kept_as_its_hash_alone(registry: Registry) -> None:
    """Name, domains, verbs and quota come back; the token does not."""
    registry.register_domain(spec(), by="ann")
    before = registry.generation()
    key, token = registry.add_key("page", domains=["live-rooms"], verbs=["feedback", "rank"], per_minute=5, by="ann")
    assert registry.api_keys() == [key]
    assert (key.domains, key.verbs, key.per_minute) == (("live-rooms",), ("rank", "feedback"), 5)
    assert key.digest == digest_of(token)
    assert len(token) > 43
    assert registry.generation() > before
    assert token not in str(registry.audit())
    assert key.digest not in str(registry.audit())
    assert key.digest not in repr(key)


def test_rotating_and_revoking_are_audited_with_before_and_after(registry: Registry) -> None:
    """The old token is replaced at once; a revoked key stays revoked and its name is free again."""
    key, first = registry.add_key("page", by="ann")
    rotated, second = registry.rotate_key("page", by="bob")
    assert first != second
    assert rotated.digest == digest_of(second)
    assert registry.revoke_key(key.id, by="cem", why="left").revoked_at is not None
    assert registry.revoke_key("page", by="cem").revoked_at is not None
    with pytest.raises(Conflict):
        registry.rotate_key(key.id, by="bob")
    assert registry.add_key("page", by="ann")[0].id != key.id
    entries = {entry["what"]: entry for entry in registry.audit()}
    assert entries["revoke_key"]["details"]["before"]["revoked"] is False
    assert entries["revoke_key"]["details"]["after"]["revoked"] is True
    assert (entries["revoke_key"]["who"], entries["revoke_key"]["why"]) == ("cem", "left")
    assert entries["rotate_key"]["who"] == "bob"


def test_what_makes_no_sense_is_refused(registry: Registry) -> None:
    """By name: the verb, the domain, the key."""
    with pytest.raises(InvalidData, match="fly"):
        registry.add_key("page", verbs=["fly"], by="ann")
    with pytest.raises(UnknownDomain):
        registry.add_key("page", domains=["nowhere"], by="ann")
    with pytest.raises(InvalidData):
        registry.add_key(" ", by="ann")
    with pytest.raises(UnknownKey):
        registry.revoke_key("nobody", by="ann")
    registry.add_key("page", by="ann")
    with pytest.raises(Conflict):
        registry.add_key("page", by="ann")
