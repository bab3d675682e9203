"""Fixtures for every test: where public data sets lie, and quiet third parties."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Set before any import of the packages that read them: no test calls out.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("FEAST_USAGE", "False")
# Launches of tests are quick: what the policy forces on them is tested by name, where its settings are given.
os.environ.setdefault("GRAFT_REQUIRED_BASELINES", "popularity")
os.environ.setdefault("GRAFT_REQUIRED_SEEDS", "1")


@pytest.fixture(scope="session")
def public_data() -> Path:
    """Folder of public data sets: GRAFT_PUBLIC_DATA, or the one kept beside the checkout."""
    path = Path(os.environ.get("GRAFT_PUBLIC_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no public data sets at {path}")
    return path


@pytest.fixture(scope="session")
def simulated_market() -> Callable[..., Any]:
    """Makes a tiny marketplace in a home of its own, ingested; nothing is trained. Gives its settings and registry."""

    def make(home: Path, *, events: int = 16_000) -> Any:
        from domains.registry.registry import Registry  # here: the variables above must be set first
        from domains.simulation.simulator import SimulatorConfig, simulate
        from orchestrator import use_cases
        from orchestrator.settings import Settings

        settings = Settings(home=home)
        registry = Registry(settings.registry_url)
        registry.migrate()
        for made in simulate(SimulatorConfig(events=events), home / "simulated"):
            use_cases.register(made.spec, registry=registry, by="test")
            use_cases.ingest_data(
                made.spec.name,
                interactions=[made.interactions],
                items=made.items,
                users=made.users,
                registry=registry,
                settings=settings,
                by="test",
            )
        return settings, registry

    return make
