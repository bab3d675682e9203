"""Ratings go the same way as clicks: preview, shared model, launch under the whole policy, report, page."""

from pathlib import Path

import numpy as np
import pytest

from domains.registry.registry import Registry
from domains.spec import DomainSpec, Gate
from orchestrator import use_cases
from orchestrator.console import terminal
from orchestrator.evaluation.gate import decide
from orchestrator.evaluation.preview_report import PreviewReport
from orchestrator.evaluation.report import ColdStartReport
from orchestrator.evaluation.rows import FREE, label
from orchestrator.settings import Settings

SMALLEST = {"folds": 2, "target_rows": 1_500, "source_rows": 1_500, "width": 4, "lifelong": 10, "epochs": 1}
QUICK = {"task": "rating", "epochs": 1, "width": 4, "lifelong": 10, "batch_size": 512}
FIVE = ("popularity", "single_domain", "shared_bottom", "full_fine_tune", "scratch")


def write_ratings(folder: Path, name: str, *, users: int, rows: int, seed: int) -> tuple[DomainSpec, Path]:
    """Ratings without times, told by who is generous and what is good; the same users in every domain."""
    random = np.random.default_rng(seed)
    generous = np.random.default_rng(7).normal(0, 0.8, users)
    good = random.normal(0, 0.5, 80)
    pairs = random.permutation(users * len(good))[:rows]
    user, item = pairs // len(good), pairs % len(good)
    noise = random.normal(0, 0.5, rows)
    rating = np.clip(np.round(3.4 + generous[user] + good[item] + noise), 1, 5).astype(int)
    path = folder / f"{name}.csv"
    lines = [f"u{u},{name}-{i},{r}" for u, i, r in zip(user, item, rating, strict=True)]
    path.write_text("\n".join(["user,item,rating", *lines]) + "\n")
    declared = {
        "name": name,
        "role": "source" if name == "books" else "target",
        "task": "rating",
        "owner": "team",
        "interactions": {"user": "user", "item": "item", "label": "rating", "label_range": [1, 5]},
        "gate": {"minimum_cold_users": 10},
    }
    return DomainSpec.from_mapping(declared), path


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> tuple[Settings, Registry]:
    """Books lend, music is new; nothing is trained."""
    home = tmp_path_factory.mktemp("ratings")
    settings = Settings(
        home=home, required_baselines=FIVE, required_seeds=2, price_per_processor_hour=3.6, currency="EUR"
    )
    registry = Registry(settings.registry_url)
    registry.migrate()
    for name, rows, seed in (("books", 6_000, 1), ("music", 3_000, 2)):
        spec, path = write_ratings(home, name, users=240, rows=rows, seed=seed)
        use_cases.register(spec, registry=registry, by="test")
        use_cases.ingest_data(name, interactions=[path], registry=registry, settings=settings, by="test")
    return settings, registry


def test_a_preview_of_ratings_values_sources_by_the_gates_metric_and_says_how_often_it_held(market, capsys):
    """Users who are generous with books are so with music: the source is worth borrowing from."""
    settings, registry = market
    run = use_cases.run("preview", "music", params=SMALLEST, registry=registry, settings=settings, by="test")
    found = PreviewReport.of(run)
    assert (found.task, found.metric) == ("rating", registry.domain("music").spec.gate.metric)
    (books,) = found.sources
    assert books.alone.value > 0
    assert books.verdict == "borrow"
    plain = {"item_mean", "item_user_bias", "declared_columns"}
    assert set(found.curve.errors) == {"adapter", *plain}
    for errors in found.curve.errors.values():
        assert all(0.3 < error.value < 1.6 for error in errors)
        assert all(error.low <= error.value <= error.high for error in errors)
    assert set(found.needed) == plain
    test = found.backtest
    assert test.of == len(test.checks) > 0
    assert test.held == sum(check.held for check in test.checks)
    terminal.preview(found)
    shown = capsys.readouterr().out
    assert "drop in MAE" in shown
    assert f"the interval held {test.held} of {test.of} times" in shown


@pytest.fixture(scope="module")
def launched(market):
    """Music, launched under the policy of five baselines and two seeds."""
    settings, registry = market
    use_cases.train_shared(registry=registry, settings=settings, by="test", leave_out=["music"], **QUICK)
    return use_cases.launch("music", registry=registry, settings=settings, by="test", fine_tune_epochs=1)


def test_the_policys_baselines_are_in_the_report_of_ratings(launched):
    """The item's mean stands for popularity, which ratings do not know; every row has its interval and its seeds."""
    report = ColdStartReport.of(launched)
    assert set(report.required.baselines) == {*FREE, *FIVE[1:]}
    assert report.required.baselines["item_mean"] == ["always", "policy"]
    assert set(report.rows) == {"train_mean", *FREE, *FIVE[1:], "zero_shot", "adapter"}
    assert set(report.gain_over_seeds) == set(report.rows) - {"adapter"}
    for row in report.rows.values():
        assert row["rmse"].low <= row["rmse"].value <= row["rmse"].high
    assert report.leaks == []
    assert any("no times" in note for note in report.notes)


def test_the_gate_ships_a_rating_domain_that_names_no_baseline(launched):
    """Generous users are told by their books: that surely beats every plain row; a required network may beat it."""
    report = ColdStartReport.of(launched)
    assert all(report.gain[row].low > 0 for row in FREE)
    surely_better = [row for row in FIVE[1:] if report.gain[row].high < 0]
    assert report.decision.promote == (not surely_better), report.decision
    assert len(surely_better) == len(report.decision.reasons) or report.decision.promote
    asked = report.required.model_copy(update={"baselines": {row: ["always"] for row in FREE}})
    alone = decide(report.model_copy(update={"required": asked}), Gate(metric="mae"))
    assert alone.promote, alone
    assert any(label(row) in alone.reasons[0] for row in FREE)


def test_no_baseline_is_handicapped_on_ratings(launched):
    """Full fine-tuning and scratch solve for the wide features as the adapter does, so both beat the item's mean."""
    rows = ColdStartReport.of(launched).rows
    assert rows["full_fine_tune"]["rmse"].value < rows["item_mean"]["rmse"].value
    assert rows["scratch"]["rmse"].value < rows["item_mean"]["rmse"].value


def test_a_launch_says_what_it_cost_and_the_page_tells_it(market, launched):
    """Processor seconds piece by piece, in money at the price that is set; the page is one file."""
    cost = ColdStartReport.of(launched).cost
    pieces = {"fine-tuning", "fine-tuning under other seeds", "comparison", *FIVE[1:]}
    assert set(cost.parts) == pieces
    assert cost.processor_seconds == pytest.approx(sum(cost.parts.values()))
    assert cost.money == pytest.approx(cost.processor_seconds / 1000)
    _, registry = market
    _, page = use_cases.report_page("music", registry=registry)
    for told in ("required by", "every launch, policy", "processor minutes", "EUR", "trained from scratch"):
        assert told in page, told
