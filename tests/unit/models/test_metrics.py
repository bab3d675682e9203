"""Metrics agree with sums done by hand and with scikit-learn, draw by draw too."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from domains.spec import METRICS_BY_TASK
from models import metrics
from models.metrics import METRICS, under_user_weights

ECE, PCOC = (
    metrics.Metric(name, name, function, greater_is_better=False, per_user=False, tasks=())
    for name, function in (("ece", metrics.ece), ("pcoc", metrics.pcoc))
)


def test_auc_counts_an_equal_pair_as_one_half():
    """Pairs (0.5, 0.2) won, (0.5, 0.5) half, (0.9, 0.2) and (0.9, 0.5) won: 3.5 of 4."""
    assert metrics.auc([0, 0, 1, 1], [0.2, 0.5, 0.5, 0.9]) == pytest.approx(3.5 / 4)


def test_auc_of_one_class_is_not_a_number():
    assert np.isnan(metrics.auc([1, 1], [0.2, 0.3]))
    assert np.isnan(metrics.auc([], []))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(1, 4)), min_size=2, max_size=60))
def test_weighted_auc_agrees_with_scikit_learn_whatever_the_ties(rows):
    label, score, weight = (np.array(column) for column in zip(*rows, strict=True))
    if len(set(label)) == 2:
        expected = roc_auc_score(label, score, sample_weight=weight)
        each_row = under_user_weights(METRICS["auc"], label, score, np.arange(len(label)))
        assert each_row(weight[None].astype(float))[0] == pytest.approx(expected)


def test_auc_is_unchanged_by_any_increasing_transform_of_the_scores():
    rng = np.random.default_rng(0)
    label, score = rng.integers(0, 2, 500), rng.normal(size=500)
    assert metrics.auc(label, score) == metrics.auc(label, np.exp(3 * score))


def test_gauc_is_the_row_weighted_mean_of_the_users_own_auc():
    """User a: AUC 1 on 2 rows; b: AUC 0 on 3 rows; c has no negative and is left out."""
    label, score, user = [1, 0, 1, 0, 0, 1], [0.9, 0.1, 0.1, 0.5, 0.6, 0.3], list("aabbbc")
    assert metrics.gauc(label, score, user) == pytest.approx((2 * 1 + 3 * 0) / 5)
    assert metrics.gauc_coverage(label, user) == pytest.approx(5 / 6)


def test_gauc_agrees_with_a_loop_over_users():
    rng = np.random.default_rng(1)
    label, score, user = rng.integers(0, 2, 800), rng.integers(0, 5, 800), rng.integers(0, 90, 800)
    wins = rows = 0.0
    for one in np.unique(user):
        own = user == one
        if len(set(label[own])) == 2:
            wins, rows = wins + own.sum() * roc_auc_score(label[own], score[own]), rows + own.sum()
    assert metrics.gauc(label, score, user) == pytest.approx(wins / rows)


def test_errors_by_hand():
    assert metrics.mae([1, 2, 5], [2, 2, 3]) == pytest.approx(1.0)
    assert metrics.rmse([1, 2, 5], [2, 2, 3]) == pytest.approx((5 / 3) ** 0.5)
    assert metrics.pcoc([1, 0, 0, 1], [0.5, 0.5, 0.25, 0.25]) == pytest.approx(0.75)


def test_logloss_agrees_with_scikit_learn_and_survives_certainty():
    label, score = np.array([0, 1, 1, 0]), np.array([0.1, 0.8, 0.6, 0.3])
    assert metrics.logloss(label, score) == pytest.approx(log_loss(label, score))
    assert metrics.logloss([1], [0.0]) == pytest.approx(-np.log(1e-7))


def test_ece_is_zero_when_every_bin_keeps_its_promise_and_the_gap_when_not():
    label = np.tile([1, 0, 0, 0], 100)
    assert metrics.ece(label, np.full(400, 0.25)) == pytest.approx(0)
    assert metrics.ece(label, np.full(400, 0.45)) == pytest.approx(0.2)
    two_bins = metrics.ece([0, 0, 1, 1], [0.1, 0.1, 0.7, 0.7], bins=2)
    assert two_bins == pytest.approx((0.1 + 0.3) / 2)


def test_a_score_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        metrics.auc([0, 1], [0.1, float("nan")])
    with pytest.raises(ValueError, match="0 or 1"):
        metrics.auc([0, 3], [0.1, 0.2])
    with pytest.raises(ValueError, match="of one length"):
        metrics.mae([0, 3], [0.1])


def _clicks(rng: np.random.Generator, users: int = 300, rows: int = 3000) -> dict[str, np.ndarray]:
    user = rng.integers(0, users, rows)
    bent = rng.normal(size=users)
    score = 1 / (1 + np.exp(-rng.normal(size=rows) - 0.5 * bent[user]))
    return {"label": (rng.random(rows) < score).astype(float), "score": score, "user": user}


@pytest.mark.parametrize("metric", [*METRICS.values(), ECE, PCOC], ids=lambda metric: metric.name)
def test_each_draw_equals_the_metric_on_the_rows_of_the_drawn_users(metric):
    """The quick path with user weights is the slow path of copying rows, draw by draw."""
    rows = _clicks(np.random.default_rng(3), users=20, rows=200)
    if metric is ECE:  # bins are of the whole sample, so no draw may move their edges
        rows["score"] = np.round(rows["score"])
    code = np.unique(rows["user"], return_inverse=True)[1]
    quick = under_user_weights(metric, rows["label"], rows["score"], code)
    drawn = np.random.default_rng(0).multinomial(code.max() + 1, np.full(code.max() + 1, 1 / (code.max() + 1)), size=4)
    for times, value in zip(drawn, quick(drawn.astype(float)), strict=True):
        label, score, user = [], [], []
        for one in np.flatnonzero(times):
            for copy in range(times[one]):
                own = code == one
                label.append(rows["label"][own]), score.append(rows["score"][own])
                user.append(np.full(own.sum(), one * 100 + copy))
        assert value == pytest.approx(metric(*(np.concatenate(part) for part in (label, score, user))))


def test_summary_names_what_each_task_reports():
    rows = _clicks(np.random.default_rng(11))
    assert {"auc", "gauc", "gauc_coverage", "logloss", "pcoc", "ece"} <= set(metrics.summary("ctr", **rows))
    assert {"mae", "rmse"} <= set(metrics.summary("rating", **rows))


def test_each_task_has_the_metrics_that_a_domain_may_be_judged_by():
    for task, names in METRICS_BY_TASK.items():
        assert [metric.name for metric in metrics.metrics_of(task)] == list(names)


def test_improvements_point_up_whichever_way_a_metric_does():
    assert (METRICS["auc"].sign, METRICS["auc"].heading) == (1.0, "AUC ↑")
    assert (METRICS["rmse"].sign, METRICS["rmse"].heading) == (-1.0, "RMSE ↓")


def test_a_rows_loss_adds_up_to_the_metric():
    """The mean of rows' losses is the log loss, and the root of it the RMSE."""
    label, score = np.array([0.0, 1.0, 1.0]), np.array([0.2, 0.9, 0.4])
    assert metrics.row_losses("ctr", label, score).mean() == pytest.approx(metrics.logloss(label, score))
    assert np.sqrt(metrics.row_losses("rating", label, score).mean()) == pytest.approx(metrics.rmse(label, score))
