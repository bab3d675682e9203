"""Users of the pages: who may sign in, with which role; every change is in the audit log, which only grows."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from domains.errors import Conflict, InvalidData, RoleRefused, UnknownUser
from domains.lifecycle import State
from domains.registry.database import Database
from domains.registry.registry import Registry
from tests.integration.registry.fakes import spec

PASSWORD = "correct horse battery"


def test_a_password_opens_for_its_own_user_alone(registry: Registry) -> None:
    """Neither another's, nor an empty one, nor that of somebody without one or of nobody at all."""
    registry.add_user("ann", role="owner", password=PASSWORD, domains=["live"], by="root")
    registry.add_user("bob", role="viewer", password=None, by="root")
    found = registry.user_of_password("ann", PASSWORD)
    assert found is not None
    assert (found.role, found.domains, found.has_password) == ("owner", ("live",), True)
    for name, password in (("ann", PASSWORD + " "), ("ann", ""), ("bob", PASSWORD), ("bob", ""), ("cem", PASSWORD)):
        assert registry.user_of_password(name, password) is None


def test_a_password_is_kept_as_its_hash_alone(url: str, registry: Registry) -> None:
    """It stands neither in what the registry hands out nor in the audit log; equal ones do not look equal."""
    registry.add_user("ann", role="owner", password=PASSWORD, by="root")
    registry.add_user("bob", role="owner", password=PASSWORD, by="root")
    database = Database(url)
    with database.read() as connection:
        first, second = connection.execute(text("SELECT password FROM users ORDER BY name")).scalars()
    database.engine.dispose()
    assert first != second
    shown = json.dumps(registry.audit(), default=str) + repr(registry.users())
    for secret in (PASSWORD, first, second, first.split("$")[-1]):
        assert secret not in shown


def test_changes_are_audited_with_before_and_after(registry: Registry) -> None:
    """Added, changed, given a password, removed."""
    registry.add_user("ann", role="viewer", password=None, by="root")
    registry.change_user("ann", role="admin", domains=["live"], by="root")
    changed = registry.set_password("ann", PASSWORD, by="ann")
    registry.remove_user("ann", by="root", why="left")
    entries = {entry["what"]: entry for entry in registry.audit()}
    assert entries["add_user"]["details"]["before"] is None
    assert entries["change_user"]["details"]["before"]["role"] == "viewer"
    assert entries["change_user"]["details"]["after"] == {
        "role": "admin",
        "domains": ["live"],
        "has_password": False,
        "session": 0,
        "removed": False,
    }
    assert changed.session == 1
    assert entries["set_password"]["who"] == "ann"
    assert entries["remove_user"]["why"] == "left"
    assert entries["remove_user"]["details"]["after"]["removed"] is True


def test_who_was_removed_is_out_and_may_come_back_with_nothing_of_before(registry: Registry) -> None:
    """Neither the role nor the password nor a session outlives it."""
    registry.add_user("ann", role="admin", password=PASSWORD, by="root")
    removed = registry.remove_user("ann", by="root")
    assert registry.user_of_password("ann", PASSWORD) is None
    with pytest.raises(UnknownUser):
        registry.user("ann")
    with pytest.raises(UnknownUser):
        registry.change_user("ann", role="admin", by="root")
    again = registry.add_user("ann", role="viewer", password=None, by="root")
    assert (again.role, again.has_password) == ("viewer", False)
    assert again.session > removed.session
    assert registry.user_of_password("ann", PASSWORD) is None


@pytest.mark.parametrize("name", ["", "Ann", "an n", "ann\n", "a" * 101, "=cmd", "ann/../root", "ann\x00"])
def test_names_that_could_pass_for_another_are_refused(registry: Registry, name: str) -> None:
    """Only small letters, digits and a few signs."""
    with pytest.raises(InvalidData, match="name"):
        registry.add_user(name, role="viewer", password=None, by="root")


def test_what_will_not_do_is_refused(registry: Registry) -> None:
    """A short password, an endless one, an unknown role, a taken name."""
    for password in ("short", "x" * 1001):
        with pytest.raises(InvalidData, match="password"):
            registry.add_user("ann", role="viewer", password=password, by="root")
    with pytest.raises(InvalidData, match="role"):
        registry.add_user("ann", role="god", password=None, by="root")  # type: ignore[arg-type]
    registry.add_user("ann", role="viewer", password=None, by="root")
    with pytest.raises(Conflict):
        registry.add_user("ann", role="admin", password=None, by="root")


@pytest.mark.parametrize("statement", ["UPDATE audit SET who = 'nobody'", "DELETE FROM audit"])
def test_the_database_refuses_to_change_the_audit_log(url: str, registry: Registry, statement: str) -> None:
    """Whoever holds a connection of Graft's, a fault in Graft included."""
    registry.note("ann", "look")
    database = Database(url)
    with pytest.raises(DBAPIError, match="only added"), database.write() as connection:
        connection.execute(text(statement))
    database.engine.dispose()
    assert [entry["who"] for entry in registry.audit()] == ["ann"]


def test_the_audit_log_can_be_read_from_a_moment_on(registry: Registry) -> None:
    """By domain, by time, and bounded."""
    registry.register_domain(spec(), by="ann")
    first = registry.audit()[-1]
    registry.note("bob", "look", spec().name)
    registry.note("cem", "look")
    later = registry.audit(since=registry.audit()[1]["at"])
    assert [entry["who"] for entry in later][:2] == ["cem", "bob"]
    assert first["id"] not in [entry["id"] for entry in later if entry["at"] > first["at"]]
    assert {entry["domain"] for entry in registry.audit(spec().name)} == {spec().name}
    assert len(registry.audit(limit=1)) == 1


def test_a_view_for_reading_changes_nothing(url: str, registry: Registry) -> None:
    """Not one verb of the registry, whatever it is called with: the database itself refuses."""
    registry.register_domain(spec(), by="ann")
    view = Registry(url, read_only=True)
    assert view.domain(spec().name).owner == registry.domain(spec().name).owner
    for change in (
        lambda: view.move(spec().name, State.RETIRED, by="ann"),
        lambda: view.register_domain(spec(name="other"), by="ann"),
        lambda: view.note("ann", "look"),
        lambda: view.add_user("ann", role="admin", password=None, by="ann"),
        lambda: view.add_key("page", by="ann"),
        view.migrate,
    ):
        with pytest.raises(RoleRefused):
            change()
    view.close()
    assert [entry["what"] for entry in registry.audit()] == ["register_domain"]
