"""Launches of domains whose files hold what nobody could know when the request came."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from domains.errors import InvalidSpec
from domains.spec import DomainSpec
from orchestrator import use_cases
from orchestrator.cli import app
from orchestrator.credentials import os_user
from orchestrator.evaluation.report import ColdStartReport, ZeroShotReport

QUICK = {"epochs": 1, "fine_tune_epochs": 1, "width": 4, "lifelong": 10, "batch_size": 512, "fine_tune_batch_size": 512}
NEARLY, AVERAGE = "opened_for_s", "click_rate"


@pytest.fixture(scope="module")
def market(tmp_path_factory, simulated_market):
    """A tiny marketplace with a shared model."""
    settings, registry = simulated_market(tmp_path_factory.mktemp("market"))
    use_cases.train_shared(registry=registry, settings=settings, by="test", **QUICK)
    return settings, registry


@pytest.fixture(scope="module")
def leaky(market, tmp_path_factory):
    """Registers a copy of the domain "live" with one more column: beside each event, or in the items file."""
    settings, registry = market
    folder, made = tmp_path_factory.mktemp("leaky"), settings.home / "simulated" / "live"
    events, items = pq.read_table(made / "interactions.parquet"), pa.csv.read_csv(made / "items.csv")
    spec = registry.domain("live").spec.model_dump(mode="json", exclude_unset=True)

    def register(name, *, beside=None, of_item=None):
        declared = {
            **spec,
            "name": name,
            "gate": {"minimum_cold_users": 5},
            "interactions": {**spec["interactions"]},
            "items": {**spec["items"]},
        }
        used, described = events, items
        if beside is not None:
            declared["interactions"]["context"] = {**spec["interactions"]["context"], NEARLY: "number"}
            used = events.append_column(NEARLY, pa.array(beside(events)))
        if of_item is not None:
            declared["items"]["features"] = {**spec["items"]["features"], AVERAGE: "number"}
            described = items.append_column(AVERAGE, pa.array(of_item(events, items)))
        pq.write_table(used, folder / f"{name}.parquet")
        pa.csv.write_csv(described, folder / f"{name}.csv")
        use_cases.register(DomainSpec.from_mapping(declared), registry=registry, by="test")
        asked = {"interactions": [folder / f"{name}.parquet"], "items": folder / f"{name}.csv"}
        use_cases.ingest_data(name, **asked, users=made / "users.csv", registry=registry, settings=settings, by="test")

    return register


def nearly_the_label(events):
    """The label with every tenth of them wrong."""
    label = events["click"].to_numpy().astype(float)
    return np.where(np.random.default_rng(0).random(len(label)) < 0.1, 1 - label, label)


def average_over_all_rows(events, items):
    """The click rate of each item over the whole file."""
    clicks = events.group_by("item_id").aggregate([("click", "mean")])
    rate = dict(zip(clicks["item_id"].to_pylist(), clicks["click_mean"].to_pylist(), strict=True))
    return [rate.get(item) for item in items["item_id"].to_pylist()]


def launch(market, name):
    """Its version's report."""
    settings, registry = market
    version = use_cases.launch(name, registry=registry, settings=settings, by="test", **QUICK)
    return ColdStartReport.of(version)


def test_a_column_that_is_nearly_the_label_waits_for_somebody_who_vouches_for_it(market, leaky, monkeypatch):
    """It is named, holds zero-shot and launch, and stands in spec, audit and report once a person has said how."""
    settings, registry = market
    leaky("nearly", beside=nearly_the_label)
    report = launch(market, "nearly")
    assert [suspect.feature for suspect in report.suspects] == [NEARLY]
    assert report.decision.verdict != "ship"
    assert any(NEARLY in reason and "known_at_request" in reason for reason in report.decision.reasons)
    untrained = next(version for version in registry.versions("nearly") if version.level == "zero_shot")
    assert NEARLY in ZeroShotReport.of(untrained).decision.reasons[0]
    assert registry.live("nearly") is None
    assert NEARLY in use_cases.report_page("nearly", registry=registry)[1]

    with pytest.raises(InvalidSpec, match="opened_for"):
        use_cases.vouch("nearly", "opened_for", why="a slip", registry=registry, by="ann")
    monkeypatch.setenv("GRAFT_HOME", str(settings.home))
    why = "a forecast of the shop, made before the page"
    done = CliRunner().invoke(app, ["domains", "vouch", "nearly", NEARLY, "--why", why])
    assert done.exit_code == 0, done.output
    assert registry.domain("nearly").spec.gate.known_at_request == {NEARLY: why}
    entry = registry.audit("nearly", limit=1)[0]
    assert (entry["who"], entry["what"]) == (os_user(), "update_spec")
    assert why in CliRunner().invoke(app, ["domains", "show", "nearly"]).output.replace("\n", " ")
    again = launch(market, "nearly")
    assert [suspect.feature for suspect in again.suspects] == [NEARLY]
    assert not any("known_at_request" in reason for reason in again.decision.reasons)
    assert why in use_cases.report_page("nearly", registry=registry)[1]


def test_an_items_file_with_averages_over_all_rows_holds_the_launch(market, leaky):
    """It saw the rows that the version is judged on."""
    leaky("stars", of_item=average_over_all_rows)
    report = launch(market, "stars")
    assert [suspect.feature for suspect in report.suspects] == [AVERAGE]
    assert report.decision.verdict != "ship"


def test_the_same_domain_without_such_columns_is_not_blamed(market):
    """Neither its own features nor what is read of histories."""
    assert launch(market, "live").suspects == []


def test_users_who_were_cold_once_are_not_trained_on_later(market):
    """A smaller share of cold users makes some of an earlier version's learn: the launch waits and says why."""
    _, registry = market
    first = launch(market, "live")
    assert first.leaks == []
    spec = registry.domain("live").spec
    registry.update_spec(changed_gate(spec, cold_share=0.1), by="test")
    smaller = launch(market, "live")
    assert any("held out as cold from version" in leak and "gate.cold_share to 0.2" in leak for leak in smaller.leaks)
    assert smaller.decision.verdict != "ship"
    registry.update_spec(changed_gate(spec, cold_share=0.3), by="test")
    assert launch(market, "live").leaks == []


def changed_gate(spec, **changes):
    """The spec with another gate."""
    declared = spec.model_dump(mode="json", exclude_unset=True)
    return DomainSpec.from_mapping({**declared, "gate": {**declared["gate"], **changes}})
