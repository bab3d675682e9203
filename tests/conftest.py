"""For every test: quiet third parties, one thread a process, which tests stay together, where public data sets lie."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Set before any import of the packages that read them: no test calls out.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("FEAST_USAGE", "False")
# Tests run in several processes, and their tensors are small: more threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Launches of tests are quick: what the policy forces on them is tested by name, where its settings are given.
os.environ.setdefault("GRAFT_REQUIRED_BASELINES", "popularity")
os.environ.setdefault("GRAFT_REQUIRED_SEEDS", "1")


class Together(LoadScopeScheduling):
    """Keeps the tests of a file in one process, and those of a folder of integration tests: they share fixtures.

    The groups of pytest-xdist itself (``loadgroup``) are written into ids of tests, which pytest 9.2 does not allow.
    """

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        folder = path.rpartition("/")[0]
        return folder if folder.startswith("tests/integration/") else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """Asked for where tests run in several processes."""
    return Together(config, log)


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
