"""What every page needs: the settings, the registry, who is acting, and reads that are cached for a while."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import httpx
import streamlit as st

from domains.events.domain_data import DomainData
from domains.events.readiness import Readiness
from domains.lifecycle import FallbackLevel
from domains.registry.records import Domain, Version
from domains.registry.registry import Registry
from orchestrator import prefect_client, use_cases
from orchestrator.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")


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
    """The registry, migrated once per process."""
    where = settings()
    where.home.mkdir(parents=True, exist_ok=True)
    return _registry(where.registry_url)


def home() -> Home:
    """What the pages read from."""
    return Home(settings(), registry())


def who() -> str:
    """Whose name goes into the audit trail with what is done on the pages."""
    return str(st.session_state.get("acting_as") or _login()).strip()[:100] or "somebody"


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


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "somebody"


@st.cache_resource(show_spinner=False)
def _registry(url: str) -> Registry:
    found = Registry(url)
    found.migrate()
    return found


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
