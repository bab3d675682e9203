"""A preview before any training, and the report that a launch leaves, through the use cases and the command line."""

import numpy as np
import pytest
from typer.testing import CliRunner

from domains.errors import NotEnoughData, UnknownVersion
from domains.registry import Registry
from domains.simulator import SimulatorConfig, simulate
from domains.spec import DomainSpec
from orchestrator import evaluation, launching, terminal, use_cases
from orchestrator.cli import app
from orchestrator.settings import Settings

QUICK = {"epochs": 1, "fine_tune_epochs": 1, "width": 4, "lifelong": 10, "batch_size": 512, "fine_tune_batch_size": 512}
SMALLEST = {"folds": 2, "target_rows": 1_500, "source_rows": 600, "width": 4, "lifelong": 10, "epochs": 1}


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """A tiny marketplace, ingested; nothing is trained."""
    home = tmp_path_factory.mktemp("market")
    settings = Settings(home=home)
    registry = Registry(settings.registry_url)
    registry.migrate()
    for simulated in simulate(SimulatorConfig(events=16_000), home / "simulated"):
        use_cases.register(simulated.spec, registry=registry, by="test")
        use_cases.ingest_data(
            simulated.spec.name,
            interactions=[simulated.interactions],
            items=simulated.items,
            users=simulated.users,
            registry=registry,
            settings=settings,
            by="test",
        )
    return settings, registry


@pytest.fixture(scope="module")
def launched(market):
    """Its domain "live", fine-tuned under two seeds."""
    settings, registry = market
    use_cases.train_shared(registry=registry, settings=settings, by="test", leave_out=["live"], **QUICK)
    return use_cases.launch("live", registry=registry, settings=settings, by="test", seeds=2, **QUICK)


def test_a_preview_values_every_source_and_forecasts_before_anything_is_trained(market, capsys):
    """It needs no shared model, judges no cold user of a launch, and is read again from its run."""
    settings, registry = market
    assert use_cases.latest_preview("live", registry=registry) is None
    found = use_cases.preview("live", registry=registry, settings=settings, by="test", **SMALLEST)
    assert registry.live("live") is None
    assert [source["name"] for source in found["sources"]] == ["video", "shop"]
    for source in found["sources"]:
        assert source["verdict"] in ("borrow", "do not borrow", "no clear gain")
        for kind in ("alone", "beside"):
            assert source[kind]["low"] <= source[kind]["high"]
    rows = found["curve"]["rows"]
    assert rows == sorted(rows)
    assert set(found["curve"]["errors"]) == {"adapter", "popularity", "item_mean"}
    assert set(found["needed"]) == {"popularity", "item_mean"}
    assert found["backtest"]["held"] <= found["backtest"]["of"]
    assert use_cases.latest_preview("live", registry=registry) == found
    terminal.preview("live", found)
    shown = capsys.readouterr().out
    for expected in ("video", found["sources"][0]["verdict"], "beside the others", "ahead of prior (popularity) with"):
        assert expected in shown


def test_a_preview_of_too_little_says_so(market):
    """A domain without rows is refused by name, and the run says why."""
    settings, registry = market
    spec = registry.domain("live").spec.model_dump(mode="json")
    use_cases.register(DomainSpec.from_mapping({**spec, "name": "nothing-yet"}), registry=registry, by="test")
    with pytest.raises(NotEnoughData, match="nothing-yet"):
        use_cases.preview("nothing-yet", registry=registry, settings=settings, by="test")


def test_several_seeds_are_told_and_the_first_is_offered(market, launched):
    """The mean over seeds lies between them; the table's own row is the first seed's."""
    seeds = launched.report["seeds"]["auc"]
    each = list(seeds["each"].values())
    assert len(each) == 2
    assert seeds["value"] == pytest.approx(np.mean(each))
    assert each[0] == pytest.approx(launched.report["rows"]["adapter"]["auc"]["value"])
    _, registry = market
    assert [version.id for version in registry.versions("live") if version.rung == "adapter"] == [launched.id]


def test_later_rows_of_known_users_are_shown_and_decide_nothing(launched):
    """Warm users are a segment of their own beside the cold ones who judge."""
    warm = launched.report["segments"]["warm_user"]
    assert set(warm["rows"]) == set(launched.report["rows"])
    assert warm["users"] > 0
    assert launched.report["leaks"] == []


def test_a_report_is_exported_as_one_file(market, launched, monkeypatch, tmp_path):
    """The shell writes the same page that the use case gives; a version of nobody is refused."""
    settings, registry = market
    version, page = use_cases.report_page("live", registry=registry)
    assert version.id == launched.id
    assert launched.certificate["before"] in page
    monkeypatch.setenv("GRAFT_HOME", str(settings.home))
    out = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["report", "live", launched.id[:8], "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert out.read_text(encoding="utf-8") == page
    with pytest.raises(UnknownVersion, match="launch it first"):
        use_cases.report_page("reading", registry=registry)


def test_the_steps_of_a_launch_name_the_repeats():
    """People who follow the run see when other seeds are at work."""
    assert "Fine-tune again under other seeds" in [step.title for step in launching.STEPS]


def test_popularity_of_rows_with_one_label_is_that_label():
    """A small share of a domain may hold no click at all."""
    assert evaluation.popularity(np.array([1, 2]), np.zeros(2), np.array([1, 5])).tolist() == [0.0, 0.0]
