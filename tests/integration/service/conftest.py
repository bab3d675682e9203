"""Fixtures: a trained marketplace, the service over it in this process, and a client that checks every answer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from deployment.engine import features
from deployment.engine.serving import Serving
from deployment.http.api import create_app
from domains.registry.registry import Registry
from domains.simulation.simulator import SimulatorConfig, simulate
from orchestrator import use_cases
from orchestrator.settings import Settings
from tests.integration.service.fakes import CONTRACT, LEFT_OUT, Market


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Market:
    """A tiny marketplace after one epoch; `live` has a zero-shot and a fine-tuned version, the former answers in every
    target."""
    home = tmp_path_factory.mktemp("market")
    market = Market(Settings(home=home))
    registry = market.registry
    registry.migrate()
    for domain in simulate(SimulatorConfig(size="tiny"), home / "simulated"):
        use_cases.register(domain.spec, registry=registry, by="tests")
        use_cases.ingest_data(
            domain.spec.name,
            interactions=[domain.interactions],
            items=domain.items,
            users=domain.users,
            registry=registry,
            settings=market.settings,
            by="tests",
        )
    common = {"registry": registry, "settings": market.settings, "by": "tests"}
    use_cases.train_shared(**common, epochs=1, leave_out=("live", LEFT_OUT))
    use_cases.launch("live", **common, fine_tune_epochs=1)
    # So tiny a model passes no gate: these tests are of serving, not of judging.
    for name in ("live", "grocery", LEFT_OUT):
        market.set_live(name, market.versions(name)["zero_shot"])
    return market


@contextmanager
def client_of(serving: Serving) -> Iterator[TestClient]:
    with TestClient(create_app(lambda: serving), raise_server_exceptions=False) as client:
        client.event_hooks = {"response": [CONTRACT]}
        yield client


@pytest.fixture(autouse=True, scope="session")
def a_busy_machine() -> Iterator[None]:
    """Tests of other things share their processors: no answer of theirs goes without features for that."""
    usual = features.SHORTEST_LIMIT_S, features.LONGEST_LIMIT_S
    features.SHORTEST_LIMIT_S = features.LONGEST_LIMIT_S = 5.0
    yield
    features.SHORTEST_LIMIT_S, features.LONGEST_LIMIT_S = usual


@contextmanager
def served(market: Market, registry: Registry) -> Iterator[Serving]:
    serving = Serving(market.settings, registry=registry, watch_every_s=0.05)
    serving.start()
    yield serving
    serving.close()


def copy_of(market: Market, folder: Path) -> Market:
    home = folder / "home"
    shutil.copytree(market.settings.home, home)
    return Market(Settings(home=home))


@pytest.fixture
def market(trained: Market, tmp_path: Path) -> Market:
    """A copy that a test may harm."""
    return copy_of(trained, tmp_path)


@pytest.fixture
def registry(market: Market) -> Registry:
    """The one that the service of the test holds."""
    return market.registry


@pytest.fixture
def serving(market: Market, registry: Registry) -> Iterator[Serving]:
    with served(market, registry) as serving:
        yield serving


@pytest.fixture
def client(serving: Serving) -> Iterator[TestClient]:
    with client_of(serving) as client:
        yield client


@pytest.fixture(scope="session")
def shared_market(trained: Market, tmp_path_factory: pytest.TempPathFactory) -> Market:
    """A copy for the tests that only ask: nothing in it is promoted, registered or harmed."""
    return copy_of(trained, tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def shared_serving(shared_market: Market) -> Iterator[Serving]:
    with served(shared_market, shared_market.registry) as serving:
        yield serving


@pytest.fixture
def shared_client(shared_serving: Serving) -> Iterator[TestClient]:
    with client_of(shared_serving) as client:
        yield client
