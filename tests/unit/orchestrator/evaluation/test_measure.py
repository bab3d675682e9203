"""Metrics of evaluation rows: intervals over users, gains, spread over seeds, calibration."""

import numpy as np
import pytest

from orchestrator.evaluation.measure import EvaluationRows, prediction_bias, reliability


@pytest.fixture
def rows() -> EvaluationRows:
    """Clicks of 60 users."""
    random = np.random.default_rng(0)
    return EvaluationRows("ctr", (random.random(900) < 0.3).astype(np.float32), random.integers(0, 60, 900))


@pytest.fixture
def scores(rows) -> dict[str, np.ndarray]:
    """One row of the table that knows something and one that knows nothing."""
    noise = np.random.default_rng(1).random(len(rows))
    return {"good": np.clip(0.3 * rows.label + 0.4 * noise, 0.01, 0.99), "blind": np.full(len(rows), 0.3)}


def test_a_table_has_every_metric_of_the_task_with_its_interval(rows, scores):
    """Intervals enclose values."""
    table = rows.table(scores, draws=50)
    assert list(table) == ["good", "blind"]
    assert list(table["good"]) == ["auc", "gauc", "logloss"]
    assert all(found.low <= found.value <= found.high for found in table["good"].values())


def test_a_gain_is_positive_where_it_is_better_whichever_way_the_metric_points(rows, scores):
    """More AUC and less log loss are both gains."""
    for metric in ("auc", "logloss"):
        gain = rows.gain(metric, scores["good"], scores["blind"])
        assert 0 < gain.low <= gain.value <= gain.high
        assert rows.gain(metric, scores["blind"], scores["good"]).value == pytest.approx(-gain.value)


def test_a_segment_of_few_rows_or_one_label_is_not_measured(rows, scores):
    """It would say nothing but chance."""
    for index in (np.arange(20), rows.label > 0):
        part = {name: score[index] for name, score in scores.items()}
        assert rows.take(index).segment(part) is None
    assert rows.segment(scores).users == 60


def test_a_gain_over_seeds_compares_seed_with_seed(rows, scores):
    """A row without seeds is compared with each of them."""
    good, blind = scores["good"], scores["blind"]
    gain = rows.gain_over_seeds("auc", {0: good, 1: blind}, {0: blind})
    assert list(gain.each) == [0, 1]
    assert gain.each[1] == 0
    assert gain.value == pytest.approx(gain.each[0] / 2)
    assert rows.gain_over_seeds("auc", {0: good, 1: good}, {0: blind, 1: good}).each[1] == 0


def test_prediction_bias_is_a_share_of_clicks_or_of_the_spread_of_ratings():
    """Twice the clicks is one; a rating off by one standard deviation is one."""
    label = np.array([0.0, 1.0, 0.0, 1.0])
    assert prediction_bias("ctr", label, np.ones(4)) == pytest.approx(1.0)
    assert prediction_bias("rating", label, label + label.std()) == pytest.approx(1.0)


def test_reliability_has_bins_of_equal_count_in_the_order_of_predictions(rows, scores):
    """Every row is in one of them."""
    bins = reliability(rows.label, scores["good"])
    assert [part.examples for part in bins] == [90] * 10
    assert [part.predicted for part in bins] == sorted(part.predicted for part in bins)
