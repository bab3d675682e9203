"""A registry on each kind of database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from domains.registry.registry import Registry


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.servers)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    return f"sqlite:///{tmp_path}/registry.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    opened = Registry(url)
    opened.migrate()
    yield opened
    opened.close()
