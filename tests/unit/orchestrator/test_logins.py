"""Who is at the pages: sessions that cannot be forged, that end, and passwords that cannot be guessed in a hurry."""

from __future__ import annotations

import os
import statistics
import time

import pytest
from itsdangerous import URLSafeTimedSerializer

from domains.errors import LoginRefused
from domains.registry.registry import Registry
from orchestrator import logins as module
from orchestrator import use_cases
from orchestrator.acting import Actor
from orchestrator.credentials import os_user, provider_settings
from orchestrator.logins import Logins
from orchestrator.settings import Settings

PASSWORD = "correct horse battery"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def registry(settings) -> Registry:
    return use_cases.open_registry(settings)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logins(registry, settings, clock) -> Logins:
    """Where ann is an owner with a password."""
    registry.add_user("ann", role="owner", password=PASSWORD, domains=["live"], by="root")
    return Logins(registry, settings, clock=clock)


def test_without_users_whoever_runs_it_on_loopback_is_admin(registry, settings):
    """A first try needs no login; a wider interface, a provider, another machine or a user changes that."""
    first = Logins(registry, settings)
    assert not first.needed(reached_from="127.0.0.1")
    assert first.by_os() == Actor(os_user(), "admin")
    assert first.needed(reached_from="10.0.0.7")
    assert first.needed(reached_from="a proxy")
    for host in ("0.0.0.0", "::", "10.0.0.7", "example.org", "127.evil.example"):
        assert Logins(registry, settings.model_copy(update={"bind_host": host})).needed(reached_from="127.0.0.1")
    assert Logins(registry, settings, provider=True).needed(reached_from="127.0.0.1")
    registry.add_user("ann", role="viewer", password=None, by="root")
    assert first.needed(reached_from="127.0.0.1")
    registry.remove_user("ann", by="root")
    assert first.needed(reached_from="127.0.0.1"), "removing the last user must not open the door"


def test_a_session_says_who_somebody_is_until_it_ends(logins, registry, monkeypatch):
    """Signed out, another password, removed, too old: each ends it; another role counts at once."""
    text = logins.sign_in(" Ann ", PASSWORD)
    assert logins.by_session(text) == Actor("ann", "owner", ("live",))
    registry.change_user("ann", role="viewer", domains=[], by="root")
    assert logins.by_session(text) == Actor("ann", "viewer")
    logins.sign_out(logins.by_session(text))
    with pytest.raises(LoginRefused, match="ended"):
        logins.by_session(text)
    text = logins.sign_in("ann", PASSWORD)
    registry.set_password("ann", PASSWORD + "!", by="ann")
    with pytest.raises(LoginRefused):
        logins.by_session(text)
    text = logins.sign_in("ann", PASSWORD + "!")
    monkeypatch.setattr(module, "SESSION_S", -1)
    with pytest.raises(LoginRefused):
        logins.by_session(text)
    monkeypatch.undo()
    assert logins.by_session(text).name == "ann"
    registry.remove_user("ann", by="root")
    with pytest.raises(LoginRefused):
        logins.by_session(text)


def test_forged_sessions_are_refused(logins, registry, settings):
    """Every cut, every changed character, another secret, another shape."""
    registry.add_user("root", role="admin", password=None, by="root")
    text = logins.sign_in("ann", PASSWORD)
    wrong = [None, "", "x", text[:-1], text + "x", text.replace(".", ""), text.upper(), "." * 10, "é", "\x00"]
    wrong += [text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :] for at in range(len(text) - 1)]
    wrong.append(URLSafeTimedSerializer("guess", salt="graft session").dumps(["root", 0]))
    own = URLSafeTimedSerializer(settings.ui_secret_file.read_text(), salt="graft session")
    wrong += [own.dumps(payload) for payload in (["root"], "root", {"name": "root"}, ["root", "0"], [["root"], 0], 7)]
    wrong.append(URLSafeTimedSerializer(settings.ui_secret_file.read_text(), salt="other").dumps(["root", 0]))
    for forged in wrong:
        with pytest.raises(LoginRefused):
            logins.by_session(forged)
    settings.ui_secret_file.unlink()
    with pytest.raises(LoginRefused):
        logins.by_session(text)


def test_guessing_waits_longer_each_time(logins, registry, clock):
    """Also for the right password meanwhile; another name is not held up, and success forgives."""
    for _ in range(module.FREE_TRIES):
        with pytest.raises(LoginRefused, match="do not belong"):
            logins.sign_in("ann", "wrong password")
    with pytest.raises(LoginRefused, match="too many"):
        logins.sign_in("ann", PASSWORD)
    waits = []
    for _ in range(8):
        with pytest.raises(LoginRefused, match="too many") as refusal:
            logins.sign_in("ann", "wrong password")
        waits.append(refusal.value.details["wait_s"])
        clock.now += waits[-1] + 0.1
        with pytest.raises(LoginRefused, match="do not belong"):
            logins.sign_in("ann", "wrong password")
    assert waits == sorted(waits)
    assert waits[-1] == module.LONGEST_WAIT_S
    registry.add_user("bob", role="viewer", password=PASSWORD, by="root")
    logins.sign_in("bob", PASSWORD)
    clock.now += module.LONGEST_WAIT_S
    logins.sign_in("ann", PASSWORD)
    with pytest.raises(LoginRefused, match="do not belong"):
        logins.sign_in("ann", "wrong password")
    logins.sign_in("ann", PASSWORD)


def test_what_strangers_type_fills_neither_memory_nor_the_audit_log(logins, registry, clock, monkeypatch):
    """Names are bounded, entries are counted together, and nobody's password typed into the wrong field is kept."""
    monkeypatch.setattr(module, "NAMES_KEPT", 5)
    monkeypatch.setattr(Registry, "user_of_password", lambda *_: None)
    for number in range(30):
        with pytest.raises(LoginRefused):
            logins.sign_in(f"secret-{number}", "x")
    entries = [entry for entry in registry.audit() if entry["what"] == "refuse_login"]
    assert len(entries) == 1
    assert "secret" not in str(entries)
    clock.now += module.NOTED_EVERY_S
    with pytest.raises(LoginRefused):
        logins.sign_in("secret-again", "x")
    assert registry.audit(limit=1)[0]["details"]["tries"] == 30
    with pytest.raises(LoginRefused):
        logins.sign_in("ann", "x")
    assert registry.audit(limit=1)[0]["who"] == "ann"


@pytest.mark.slow
def test_the_time_of_a_refusal_does_not_tell_which_names_exist(logins, registry):
    """An unknown name, one without a password and a wrong password take alike."""
    registry.add_user("bob", role="viewer", password=None, by="root")
    registry.user_of_password("warm", "up")
    took: dict[str, list[float]] = {"ann": [], "bob": [], "nobody": []}
    for _ in range(7):
        for name, times in took.items():
            began = time.process_time()
            assert registry.user_of_password(name, "wrong password") is None
            times.append(time.process_time() - began)
    medians = {name: statistics.median(times) for name, times in took.items()}
    assert max(medians.values()) < 1.5 * min(medians.values()), medians


def test_a_provider_vouches_only_for_those_who_were_added(logins, registry):
    """Its own users are many more."""
    registry.add_user("eve@example.org", role="viewer", password=None, by="root")
    assert logins.by_provider("Eve@Example.org") == Actor("eve@example.org", "viewer")
    with pytest.raises(LoginRefused, match="an admin can add"):
        logins.by_provider("mallory@example.org")
    registry.remove_user("eve@example.org", by="root")
    with pytest.raises(LoginRefused):
        logins.by_provider("eve@example.org")


def test_the_provider_is_read_from_a_file_that_others_cannot_read(settings):
    """Its client secret would let anybody pose as these pages."""
    path = settings.home / ".streamlit" / "secrets.toml"
    assert provider_settings(settings.home) is None
    path.parent.mkdir(parents=True)
    path.write_text('[auth]\nclient_id = "graft"\nclient_secret = "tell-nobody"\n')
    path.chmod(0o644)
    with pytest.raises(LoginRefused, match="chmod 600") as refusal:
        provider_settings(settings.home)
    assert "tell-nobody" not in str(refusal.value)
    path.chmod(0o600)
    assert provider_settings(settings.home) == {"client_id": "graft", "client_secret": "tell-nobody"}
    path.write_text("[auth\nclient_secret = tell-nobody")
    with pytest.raises(LoginRefused, match="TOML") as refusal:
        provider_settings(settings.home)
    assert "tell-nobody" not in str(refusal.value)


def test_a_home_of_before_is_closed_to_others(settings):
    """Also one that was made with the usual modes."""
    settings.home.mkdir(mode=0o755)
    settings.home.chmod(0o755)
    use_cases.open_registry(settings)
    assert settings.home.stat().st_mode & 0o777 == 0o700
    assert os.access(settings.home, os.W_OK)
