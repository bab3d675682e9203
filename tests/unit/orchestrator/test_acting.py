"""Roles: every verb, for every role, in a domain of one's own and in another's; what is refused is on record."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from domains.errors import RoleRefused, UnknownDomain
from domains.registry.registry import Registry
from domains.spec import DomainSpec
from orchestrator import acting, use_cases
from orchestrator.acting import Acting, Actor, every_verb_asks
from orchestrator.credentials import os_user
from orchestrator.settings import Settings

OWN, GRANTED, FOREIGN = "own", "granted", "foreign"
PEOPLE = {
    "viewer": Actor("ann", "viewer", (GRANTED,)),
    "owner": Actor("ann", "owner", (GRANTED,)),
    "admin": Actor("root", "admin"),
}
VERBS = {name: verb for name, verb in vars(Acting).items() if hasattr(verb, "needs")}
IN_A_DOMAIN: dict[str, dict[str, Any]] = {
    "update_spec": {},
    "ingest_data": {"interactions": [], "items": None, "users": None},
    "start": {"kind": "launch-domain"},
    "cancel": {},
    "promote": {"version_id": "v", "why": "because"},
    "roll_back": {"why": "because"},
    "pause": {"why": "because"},
    "resume": {"why": "because"},
    "retire": {"why": "because"},
}
FOR_ADMINS: dict[str, dict[str, Any]] = {
    "add_key": {"name": "page", "domains": [], "verbs": ["rank"]},
    "rotate_key": {"key": "held"},
    "revoke_key": {"key": "held"},
    "add_user": {"name": "bob", "role": "viewer", "password": None, "domains": []},
    "change_user": {"name": "cem", "role": "admin", "domains": []},
    "remove_user": {"name": "cem"},
    "audit": {},
    "users": {},
    "api_keys": {},
}
ANYWHERE = ("register", "keep_upload", "refuse_path")


def spec(name: str, owner: str) -> DomainSpec:
    return DomainSpec.model_validate(
        {
            "name": name,
            "role": "target",
            "task": "ctr",
            "owner": owner,
            "interactions": {"user": "u", "item": "i", "time": "t", "label": "y"},
        }
    )


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def registry(settings) -> Registry:
    """A domain of ann's, one that she was granted, one of bob's; a user, a key, and a run of each domain."""
    opened = use_cases.open_registry(settings)
    for name, owner in ((OWN, "ann"), (GRANTED, "bob"), (FOREIGN, "bob")):
        opened.register_domain(spec(name, owner), by="root")
        opened.start_run("preview", name, params={}, by="root", run_id=f"run-{name}")
    opened.start_run("train-shared", None, params={}, by="root", run_id="run-shared")
    opened.add_user("cem", role="viewer", password=None, by="root")
    opened.add_key("held", by="root")
    return opened


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, dict[str, Any]]]:
    """What reached the use cases and the registry's verbs, instead of being done."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def record(name: str):
        def called(*_args: Any, **known: Any) -> None:
            seen.append((name, known))

        return called

    for name in ("ingest_data", "start", "cancel", "promote", "roll_back", "pause", "resume", "retire"):
        monkeypatch.setattr(use_cases, name, record(name))
    for name in ("update_spec", "add_key", "rotate_key", "revoke_key", "add_user", "change_user"):
        monkeypatch.setattr(Registry, name, record(name))
    monkeypatch.setattr(Registry, "remove_user", record("remove_user"))
    return seen


def call(verb: str, actor: Actor, domain: str | None, registry: Registry, settings: Settings) -> Any:
    given = dict(IN_A_DOMAIN.get(verb) or FOR_ADMINS.get(verb) or {})
    if verb == "update_spec":
        given["spec"] = registry.domain(domain).spec
    elif verb == "cancel":
        given["run_id"] = f"run-{domain or 'shared'}"
    elif verb in IN_A_DOMAIN:
        given["domain"] = domain
    return getattr(Acting(actor, registry=registry, settings=settings), verb)(**given)


def test_every_verb_is_walked_below():
    """A new one must be added to a table of this file."""
    assert set(VERBS) == {*IN_A_DOMAIN, *FOR_ADMINS, *ANYWHERE}
    public = {name for name, found in inspect.getmembers(Acting, callable) if not name.startswith("_")}
    assert public - {"require"} == set(VERBS)


def test_a_verb_that_asks_for_no_role_cannot_be_written():
    """It is found when the module is imported."""
    with pytest.raises(TypeError, match="open_door"):

        @every_verb_asks
        class Careless:
            def open_door(self) -> None:
                pass


@pytest.mark.parametrize("verb", IN_A_DOMAIN)
@pytest.mark.parametrize("place", [(role, domain) for role in PEOPLE for domain in (OWN, GRANTED, FOREIGN)])
def test_a_domain_is_changed_by_its_owner_and_by_admins_alone(registry, settings, calls, verb, place):
    """Whoever else tries is refused before anything happens, and that is on record."""
    role, domain = place
    actor = PEOPLE[role]
    allowed = role == "admin" or (role == "owner" and domain in (OWN, GRANTED))
    if allowed:
        call(verb, actor, domain, registry, settings)
        [(_, known)] = calls
        assert actor.name in (known.get("by"), known.get("who"))
        return
    with pytest.raises(RoleRefused, match=verb):
        call(verb, actor, domain, registry, settings)
    assert calls == []
    [entry] = [entry for entry in registry.audit() if entry["what"] == "refuse_role"]
    assert (entry["who"], entry["domain"], entry["details"]["verb"]) == (actor.name, domain, verb)


@pytest.mark.parametrize("verb", ["start", "cancel"])
@pytest.mark.parametrize("role", ["viewer", "owner"])
def test_the_shared_model_is_for_admins(registry, settings, calls, verb, role):
    """It is no domain's."""
    with pytest.raises(RoleRefused):
        call(verb, PEOPLE[role], None, registry, settings)
    assert calls == []
    Acting(PEOPLE["admin"], registry=registry, settings=settings).start("train-shared")
    assert [name for name, _ in calls] == ["start"]


@pytest.mark.parametrize("verb", FOR_ADMINS)
@pytest.mark.parametrize("role", PEOPLE)
def test_keys_users_and_the_whole_audit_log_are_for_admins(registry, settings, calls, verb, role):
    """An owner's role does not help."""
    if role == "admin":
        found = call(verb, PEOPLE[role], None, registry, settings)
        assert found or [name for name, _ in calls] == [verb]
        return
    with pytest.raises(RoleRefused):
        call(verb, PEOPLE[role], None, registry, settings)
    assert calls == []


def test_what_an_owner_registers_is_theirs(registry, settings):
    """Under another owner's name only what an admin granted them."""
    owner = Acting(replace(PEOPLE["owner"], domains=("later",)), registry=registry, settings=settings)
    assert owner.register(spec("fresh", "ann")).owner == "ann"
    assert owner.register(spec("later", "team-x")).owner == "team-x"
    with pytest.raises(RoleRefused, match="set owner: ann"):
        owner.register(spec("other", "bob"))
    with pytest.raises(RoleRefused):
        Acting(PEOPLE["viewer"], registry=registry, settings=settings).register(spec("other", "ann"))
    assert [domain.name for domain in registry.domains()] == [OWN, GRANTED, FOREIGN, "fresh", "later"]


def test_only_an_admin_gives_a_domain_away(registry, settings):
    """Else a grant could be turned into something that outlives it."""
    held = registry.domain(GRANTED).spec
    owner = Acting(PEOPLE["owner"], registry=registry, settings=settings)
    with pytest.raises(RoleRefused, match="owner"):
        owner.update_spec(held.model_copy(update={"owner": "ann"}))
    owner.update_spec(held.model_copy(update={"description": "better"}))
    Acting(PEOPLE["admin"], registry=registry, settings=settings).update_spec(held.model_copy(update={"owner": "ann"}))
    assert registry.domain(GRANTED).owner == "ann"


def test_uploads_and_refused_paths(registry, settings, tmp_path):
    """A viewer fills no disk, and no audit log with what was made up."""
    path = tmp_path / "uploads" / "a.csv"
    with pytest.raises(RoleRefused):
        Acting(PEOPLE["viewer"], registry=registry, settings=settings).keep_upload(path, b"x")
    with pytest.raises(RoleRefused):
        Acting(PEOPLE["viewer"], registry=registry, settings=settings).refuse_path("/etc/passwd")
    assert not path.parent.exists()
    owner = Acting(PEOPLE["owner"], registry=registry, settings=settings)
    assert owner.keep_upload(path, b"x").read_bytes() == b"x"
    owner.refuse_path("/etc/passwd")
    assert registry.audit(limit=1)[0]["what"] == "refuse_path"


def test_an_unknown_domain_is_unknown_to_everybody(registry, settings):
    """Also to an admin."""
    for actor in PEOPLE.values():
        with pytest.raises(UnknownDomain):
            Acting(actor, registry=registry, settings=settings).pause("nowhere", why="x")


def test_changes_of_every_kind_are_on_record_with_before_and_after(registry, settings):
    """Who, what, where, and the state on both sides."""
    admin = Acting(PEOPLE["admin"], registry=registry, settings=settings)
    held = registry.domain(OWN).spec
    stricter = held.gate.model_copy(update={"minimum_cold_users": 999})
    admin.update_spec(held.model_copy(update={"gate": stricter}))
    registry.record_ingest(OWN, "i1", {"rows_added": 5})
    admin.pause(OWN, why="a test")
    admin.retire(OWN, why="a test")
    admin.add_key("page", domains=[OWN], verbs=["rank"])
    admin.rotate_key("page")
    admin.revoke_key("page", why="left")
    admin.add_user("bob", role="viewer", password=None, domains=[])
    admin.change_user("bob", role="owner", domains=[OWN])
    admin.remove_user("bob")
    noted = {}
    for entry in registry.audit():
        if entry["who"] == "root" and "after" in entry["details"]:
            noted.setdefault(entry["what"], entry["details"])
    assert set(noted) >= {
        *("update_spec", "move", "add_key", "rotate_key", "revoke_key", "add_user", "change_user", "remove_user"),
    }
    assert noted["update_spec"]["before"]["gate"]["minimum_cold_users"] != 999
    assert noted["update_spec"]["after"]["gate"]["minimum_cold_users"] == 999
    assert (noted["move"]["before"], noted["move"]["after"]) == ("paused", "retired")
    for what, details in noted.items():
        assert "before" in details, what


def test_the_operating_system_says_who_runs_this(monkeypatch):
    """Not the environment, which anybody sets."""
    for name in ("USER", "LOGNAME", "GRAFT_USER", "SUDO_USER"):
        monkeypatch.setenv(name, "somebody-else")
    assert os_user() != "somebody-else"
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    assert os_user().startswith("uid ")


def test_pages_change_things_here_alone():
    """No page names a registry that may be written to, and none passes a name for somebody to act as."""
    for path in (Path(acting.__file__).parents[1] / "ui").rglob("*.py"):
        text = path.read_text()
        assert "by=" not in text, path
        assert "who=" not in text, path
        if path.name != "session.py":
            assert "Registry(" not in text, path
            assert "open_registry" not in text, path
