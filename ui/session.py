"""What every page needs: the settings, the registry, who is acting, and reads that are cached for a while."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import httpx
import streamlit as st

from domains.errors import LoginRefused
from domains.events.domain_data import DomainData
from domains.events.readiness import Readiness
from domains.lifecycle import FallbackLevel
from domains.registry.records import Domain, Version
from domains.registry.registry import Registry
from orchestrator import prefect_client, use_cases
from orchestrator.acting import Acting, Actor
from orchestrator.credentials import make_home, provider_settings
from orchestrator.jobs import runner
from orchestrator.logins import Logins
from orchestrator.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")

Way = Literal["password", "provider", "os"]
KNOWN_S = 0.5
"""How long an answer to "who is this?" counts: a page asks many times while it is drawn."""
PEOPLE_KEPT = 1000

_known: dict[tuple[str, str | None, str, str | None], tuple[tuple[Actor, Way], float]] = {}
_uploaders: set[str] = set()


@dataclass(frozen=True)
class Home:
    """What the pages read from: the settings and the registry that they name."""

    settings: Settings
    registry: Registry

    def state(self) -> tuple[str, int]:
        """Equal as long as nothing has changed."""
        return str(self.settings.home.absolute()), self.registry.generation()


def settings() -> Settings:
    """Where this UI runs."""
    return Settings()


def registry() -> Registry:
    """The registry as pages see it: only for reading, and only by who is signed in.

    Raises:
        LoginRefused: nobody is signed in, or no longer.
    """
    actor()
    return _for_reading(settings().registry_url)


def acting() -> Acting:
    """What whoever is signed in may change.

    Raises:
        LoginRefused: nobody is signed in, or no longer.
    """
    where = settings()
    return Acting(actor(), registry=_for_writing(where.registry_url, where.home), settings=where)


def actor() -> Actor:
    """Whoever is signed in: by the cookie of a password, by an identity provider, or on loopback by running the pages.

    Raises:
        LoginRefused: nobody is signed in, or no longer.
    """
    return _present()[0]


def signed_in_by() -> Way:
    """How whoever is at the pages is known. Raises LoginRefused."""
    return _present()[1]


def cookie_name() -> str:
    """Of the cookie that holds a session; browsers share cookies among all ports of a machine."""
    return f"graft-session-{settings().ui_port}"


def visitor() -> tuple[str | None, str | None]:
    """What a browser came with: the cookie of its session, and its address; None for an address of this machine."""
    return st.context.cookies.get(cookie_name()), st.context.ip_address


def provider() -> bool:
    """Whether an identity provider may vouch for people."""
    return provider_settings(settings().home) is not None


def logins() -> Logins:
    """Tells who somebody is; one for the process, as it counts wrong passwords."""
    where = settings()
    return _logins(where.registry_url, where.home)


def sign_out() -> None:
    """End all sessions of whoever is signed in."""
    logins().sign_out(actor())
    forget()


def forget() -> None:
    """Look everybody up anew."""
    _known.clear()


def close_dead_runs() -> None:
    """Record the end of runs whose process is gone: nobody's doing, so nobody's name."""
    where = settings()
    runner.close_dead(_for_writing(where.registry_url, where.home), where)


def remember_uploader(session_id: str) -> None:
    """Note which of Streamlit's sessions may send files now."""
    allowed = actor().may("owner")
    (_uploaders.add if allowed else _uploaders.discard)(session_id)


def may_upload(session_id: str) -> bool:
    """Whether one of Streamlit's sessions may send files."""
    return session_id in _uploaders


def home() -> Home:
    """What the pages read from."""
    return Home(settings(), registry())


def live_version(name: str | None) -> Version | None:
    """The version that is live in a domain, or the live shared model for None."""
    live = registry().live(name)
    return None if live is None else registry().version(live.version_id)


def fallback_level(domain: Domain) -> str:
    """What a domain's answers rest on: a fallback level, or ``none`` without data, or ``retired``."""
    return level_name(domain, use_cases.fallback_level(domain.name, registry=registry()))


def level_name(domain: Domain, level: FallbackLevel | None) -> str:
    """The word for a level as ``fallback_level`` gives it."""
    if level is None:
        return "retired"
    return "none" if level == "prior" and not domain.counts.get("rows_added") else level


def cached(read: Callable[P, R]) -> Callable[P, R]:
    """Cache what is read from a ``Home`` until anything in its registry changes."""
    return st.cache_data(show_spinner=False, max_entries=256, hash_funcs={Home: Home.state})(read)


def readiness(name: str) -> Readiness:
    """A domain's readiness."""
    return _readiness(name, home())


def popularity(name: str) -> list[dict[str, Any]]:
    """A domain's items, the most popular first: ``item_id``, ``events``, ``score``."""
    return _popularity(name, home())


def item_features(name: str) -> dict[str, dict[str, Any]]:
    """The stored features of a domain's items, by item id."""
    return _item_features(name, home())


def service_answers() -> bool:
    """Whether the prediction service is ready, as of a few seconds ago."""
    return _service_answers(settings().service_url)


def prefect_answers() -> bool:
    """Whether the Prefect server is up, as of a few seconds ago."""
    return _prefect_answers(settings().prefect_url)


def prefect_page() -> str:
    """Address of Prefect's own UI."""
    return settings().prefect_url.removesuffix("/api")


@functools.lru_cache(maxsize=8)
def _for_writing(url: str, home: Path) -> Registry:
    make_home(home)
    found = Registry(url)
    found.migrate()
    return found


@functools.lru_cache(maxsize=8)
def _for_reading(url: str) -> Registry:
    return Registry(url, read_only=True)


@functools.lru_cache(maxsize=8)
def _logins(url: str, home: Path) -> Logins:
    return Logins(_for_writing(url, home), settings(), provider=provider())


def _present() -> tuple[Actor, Way]:
    vouched = ""
    if provider() and st.user.is_logged_in:
        vouched = str(st.user.get("email") or "")
        if not vouched or st.user.get("email_verified") is False:
            raise LoginRefused(f"the identity provider vouches for no address, or has not verified it: {vouched}")
    cookie, address = visitor()
    asked = (str(settings().home), cookie, vouched, address)
    held = _known.get(asked)
    if held is None or time.monotonic() > held[1]:
        if len(_known) >= PEOPLE_KEPT:
            _known.clear()
        held = _known[asked] = (_looked_up(*asked[1:]), time.monotonic() + KNOWN_S)
    return held[0]


def _looked_up(cookie: str | None, vouched: str, reached_from: str | None) -> tuple[Actor, Way]:
    if vouched:
        return logins().by_provider(vouched), "provider"
    if logins().needed(reached_from=reached_from):
        return logins().by_session(cookie), "password"
    return logins().by_os(), "os"


@cached
def _readiness(name: str, home: Home) -> Readiness:
    return use_cases.readiness(name, registry=home.registry, settings=home.settings)


@cached
def _popularity(name: str, home: Home) -> list[dict[str, Any]]:
    table = DomainData(home.settings.data_dir, name).popularity()
    rows = table.select(["item_id", "events", "score"]).sort_by([("events", "descending"), ("item_id", "ascending")])
    return rows.to_pylist()


@cached
def _item_features(name: str, home: Home) -> dict[str, dict[str, Any]]:
    table = DomainData(home.settings.data_dir, name).items()
    if table is None:
        return {}
    return {row.pop("item_id"): row for row in table.drop_columns(["item"]).to_pylist()}


@st.cache_data(show_spinner=False, ttl=5)
def _service_answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=1.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@st.cache_data(show_spinner=False, ttl=5)
def _prefect_answers(url: str) -> bool:
    return prefect_client.healthy(url, timeout_s=1.0)
