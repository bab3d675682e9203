"""What every page stands on: the settings, the registry, who is acting, and reads that are worth keeping a moment."""

from __future__ import annotations

import getpass
from typing import Any

import httpx
import streamlit as st

from domains.events.domain_data import DomainData
from domains.events.readiness import Readiness
from domains.registry.registry import Registry
from orchestrator import prefect_client, use_cases
from orchestrator.settings import Settings


def settings() -> Settings:
    """Where this UI runs."""
    return Settings()


def registry() -> Registry:
    """The registry, migrated once per process."""
    where = settings()
    where.home.mkdir(parents=True, exist_ok=True)
    return _registry(where.registry_url)


def who() -> str:
    """Whose name goes into the audit trail with what is done on the pages."""
    return str(st.session_state.get("acting_as") or _login()).strip()[:100] or "somebody"


def readiness(name: str) -> Readiness:
    """A domain's readiness; read again when anything in the registry has changed."""
    return _readiness(name, str(settings().home.absolute()), registry().generation())


def popularity(name: str) -> list[dict[str, Any]]:
    """A domain's items, most taken first: ``item_id``, ``events``, ``score``."""
    return _popularity(name, str(settings().home.absolute()), registry().generation())


def item_features(name: str) -> dict[str, dict[str, Any]]:
    """What is stored of each item of a domain, by item id."""
    return _item_features(name, str(settings().home.absolute()), registry().generation())


def service_answers() -> bool:
    """Whether the prediction service is ready, as of a few seconds ago."""
    return _service_answers(settings().service_url)


def prefect_answers() -> bool:
    """Whether the Prefect server is up, as of a few seconds ago."""
    return _prefect_answers(settings().prefect_url)


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


@st.cache_data(show_spinner=False, max_entries=64)
def _readiness(name: str, home: str, generation: int) -> Readiness:
    return use_cases.readiness(name, registry=registry(), settings=settings())


@st.cache_data(show_spinner=False, max_entries=16)
def _popularity(name: str, home: str, generation: int) -> list[dict[str, Any]]:
    table = DomainData(settings().data_dir, name).popularity()
    rows = table.select(["item_id", "events", "score"]).sort_by([("events", "descending"), ("item_id", "ascending")])
    return rows.to_pylist()


@st.cache_data(show_spinner=False, max_entries=16)
def _item_features(name: str, home: str, generation: int) -> dict[str, dict[str, Any]]:
    table = DomainData(settings().data_dir, name).items()
    if table is None:
        return {}
    kept = [column for column in table.column_names if column != "item"]
    return {row.pop("item_id"): row for row in table.select(kept).to_pylist()}


@st.cache_data(show_spinner=False, ttl=5)
def _service_answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=1.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@st.cache_data(show_spinner=False, ttl=5)
def _prefect_answers(url: str) -> bool:
    return prefect_client.healthy(url, timeout_s=1.0)
