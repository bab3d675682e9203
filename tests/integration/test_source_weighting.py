"""Shared training that weighs its sources says in a launch's report which of them not to borrow from."""

from pathlib import Path

import numpy as np
import pytest

from domains.registry.registry import Registry
from domains.spec import DomainSpec
from orchestrator import use_cases
from orchestrator.evaluation import html
from orchestrator.evaluation.report import ColdStartReport, SharedReport
from orchestrator.settings import Settings

HONEST, OPPOSITE, OLD, NEW = "honest", "opposite", "older", "newer"
ROWS = {HONEST: 3_000, OPPOSITE: 3_000, OLD: 4_000, NEW: 1_500}
USERS, ITEMS = 200, 40
QUICK = {"epochs": 1, "width": 8, "lifelong": 4, "short": 2, "learning_rate": 0.02, "fine_tune_batch_size": 64}


def write_clicks(folder: Path, name: str, seed: int) -> tuple[DomainSpec, dict[str, Path]]:
    """Users click what is of their own kind; one source says the opposite."""
    random = np.random.default_rng(seed)
    rows = ROWS[name]
    user, item = random.integers(USERS, size=rows), random.integers(ITEMS, size=rows)
    alike = user % 2 == item % 2
    click = random.random(rows) < np.where(alike != (name == OPPOSITE), 0.9, 0.1)
    start = 1_700_000_000
    when = np.sort(random.integers(start, start + 10_000_000, rows))
    events = zip(user, item, when, click, strict=True)
    files = {
        "interactions": ["user,item,ts,click", *(f"u{u},{name}-{i},{t},{int(c)}" for u, i, t, c in events)],
        "items": ["item,kind", *(f"{name}-{i},{'ab'[i % 2]}" for i in range(ITEMS))],
        "users": ["user,taste", *(f"u{u},{'ab'[u % 2]}" for u in range(USERS))],
    }
    paths = {}
    for what, lines in files.items():
        paths[what] = folder / f"{name}-{what}.csv"
        paths[what].write_text("\n".join(lines) + "\n")
    declared = {
        "name": name,
        "role": "source" if name in (HONEST, OPPOSITE) else "target",
        "task": "ctr",
        "owner": "team",
        "interactions": {"user": "user", "item": "item", "time": "ts", "time_unit": "s", "label": "click"},
        "items": {"id": "item", "features": {"kind": "category"}},
        "users": {"id": "user", "features": {"taste": "category"}},
        "gate": {"minimum_cold_users": 1},
    }
    return DomainSpec.from_mapping(declared), paths


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> tuple[Settings, Registry]:
    """Two sources, one of which tells the opposite, a target that asks, and one that is new."""
    home = tmp_path_factory.mktemp("source_weighting")
    settings = Settings(home=home, required_baselines=("popularity",), required_seeds=1)
    registry = Registry(settings.registry_url)
    registry.migrate()
    for seed, name in enumerate(ROWS):
        spec, paths = write_clicks(home, name, seed)
        use_cases.register(spec, registry=registry, by="test")
        use_cases.ingest_data(
            name,
            interactions=[paths["interactions"]],
            items=paths["items"],
            users=paths["users"],
            registry=registry,
            settings=settings,
            by="test",
        )
    return settings, registry


def test_a_launchs_report_says_which_source_not_to_borrow_from(market):
    """From weighed training to the version's report and its page: weights, verdicts and their reasons."""
    settings, registry = market
    chosen = {"domains": [HONEST, OPPOSITE, OLD], "source_weighting": "weighed", **QUICK}
    backbone = use_cases.train_shared(registry=registry, settings=settings, by="test", **chosen)
    version = use_cases.launch(
        NEW, registry=registry, settings=settings, by="test", fine_tune_epochs=1, fine_tune_batch_size=512
    )
    told = ColdStartReport.of(version).source_weighting
    assert told == SharedReport.of(backbone).source_weighting
    assert told.verdicts[OPPOSITE].verdict == "do not borrow"
    assert told.verdicts[HONEST].verdict == "borrow"
    assert told.verdicts[HONEST].weight - told.verdicts[OPPOSITE].weight > 0.3
    assert {row.source for row in told.weights} == {HONEST, OPPOSITE}
    page = html.render(version, registry.domain(NEW).spec.gate)
    assert "What the shared model borrowed from each source" in page
    assert f"<tr><td>{OPPOSITE}</td><td>do not borrow</td>" in page
    assert f"<tr><td>{HONEST}</td><td>borrow</td>" in page
