"""Reports are values with one reader and one writer."""

import json
import math

import pytest
from pydantic import ValidationError

from domains.registry.registry import Version
from orchestrator.console import terminal
from orchestrator.evaluation.report import Comparison, HeldOut, SeedInterval, decision_of, metrics_of

SEEDS = {"auc": {"value": 0.70, "low": 0.68, "high": 0.72, "each": {"0": 0.71, "1": 0.69}}}


def test_a_report_is_written_as_it_was_read(comparison):
    """To the last key, over JSON: of one seed nothing is said, of several everything."""
    for written in (comparison, {**comparison, "seeds": SEEDS}):
        assert Comparison.from_dict(json.loads(json.dumps(written))).as_dict() == written


def test_seeds_are_numbers_and_intervals_are_values(comparison):
    """Whoever reads a report indexes no dictionary by the names of its JSON."""
    report = Comparison.from_dict({**comparison, "seeds": SEEDS})
    assert report.seeds["auc"] == SeedInterval(0.70, 0.68, 0.72, {0: 0.71, 1: 0.69})
    assert report.rows["adapter"]["auc"].value == pytest.approx(0.71)


def test_an_interval_that_is_not_defined_stays_so(comparison):
    """One label in a draw has no AUC: NaN is neither null nor refused."""
    nothing = float("nan")
    rows = {"adapter": {"auc": {"value": nothing, "low": nothing, "high": nothing}}}
    written = Comparison.from_dict({**comparison, "rows": rows}).as_dict()
    assert json.dumps(written["rows"]) == json.dumps(rows)


@pytest.mark.parametrize("change", [{"verdict": "ship"}, {"leaks": None}, {"task": "ranking"}])
def test_what_a_report_does_not_know_is_refused(comparison, change):
    """An unknown key, a missing value or a task of another kind is an error where the report is read."""
    with pytest.raises(ValidationError, match=next(iter(change))):
        Comparison.from_dict({**comparison, **change})


def test_a_metric_that_is_not_defined_comes_back_from_the_registry_as_such():
    """GAUC of users with one label each is no number: null in the registry, NaN where it is read, words in a table."""
    auc = {"value": None, "low": None, "high": None}
    measured = {"video": {"examples": 60, "rows": {"shared": {"gauc": auc}, "item_mean": {"gauc": auc}}}}
    version = Version(id="a", kind="backbone", artifact="graft-backbone:a", metrics=measured)
    found = HeldOut.by_domain(version)
    assert math.isnan(found["video"].rows["shared"]["gauc"].value)
    with terminal.console.capture() as shown:
        terminal.domain_metrics(found)
    assert "not defined" in shown.get()


def test_nothing_is_claimed_of_a_version_that_nothing_judged():
    version = Version(id="a", kind="adapter", level="adapter", artifact="graft-adapter:a", domain="live")
    assert (metrics_of(version), decision_of(version)) == ({}, None)
