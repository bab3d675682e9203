"""Metrics agree with sums done by hand and with scikit-learn, and intervals cover what they claim to."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from models import metrics


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
        assert metrics.auc(label, score, weight) == pytest.approx(expected)


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


def test_list_metrics_by_hand():
    """List a: relevant second of three. List b: relevant first. List c: nothing relevant, left out."""
    label, group = [0, 1, 0, 1, 0, 0, 0], list("aaabbcc")
    score = [0.9, 0.5, 0.1, 0.8, 0.2, 0.3, 0.4]
    assert metrics.mrr(label, score, group) == pytest.approx((1 / 2 + 1) / 2)
    assert metrics.hit_rate_at(label, score, group, k=1) == pytest.approx(1 / 2)
    assert metrics.hit_rate_at(label, score, group, k=2) == pytest.approx(1)
    assert metrics.ndcg_at(label, score, group, k=1) == pytest.approx(1 / 2)
    assert metrics.ndcg_at(label, score, group, k=10) == pytest.approx((1 / np.log2(3) + 1) / 2)


def test_a_constant_score_earns_what_a_random_order_earns():
    """Ties must not flatter: 4 rows of one score with 1 relevant rank it 1..4 with equal chance."""
    label, group, score = [0, 0, 0, 1], [0] * 4, [1.0] * 4
    assert metrics.mrr(label, score, group) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert metrics.hit_rate_at(label, score, group, k=3) == pytest.approx(3 / 4)
    assert metrics.ndcg_at(label, score, group, k=1) == pytest.approx(1 / 4)


def test_two_relevant_rows_in_one_tie_follow_the_mean_over_all_orders():
    label, score = np.array([0, 1, 1, 0, 0]), np.ones(5)
    rng = np.random.default_rng(0)
    first = np.array([np.flatnonzero(label[rng.permutation(5)])[0] + 1 for _ in range(20_000)])
    assert metrics.mrr(label, score, np.zeros(5)) == pytest.approx((1 / first).mean(), abs=0.01)
    assert metrics.hit_rate_at(label, score, np.zeros(5), k=2) == pytest.approx((first <= 2).mean(), abs=0.015)


def test_ndcg_agrees_with_scikit_learn_with_ties_and_grades():
    rng = np.random.default_rng(2)
    label, score = rng.integers(0, 4, (30, 12)), rng.integers(0, 6, (30, 12))
    label[:, 0] = 1
    group = np.repeat(np.arange(30), 12)
    ours = metrics.ndcg_at(label.ravel(), score.ravel(), group, k=5)
    assert ours == pytest.approx(ndcg_score(label, score, k=5))


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


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        (metrics.auc, {}),
        (metrics.gauc, {}),
        (metrics.logloss, {}),
        (metrics.rmse, {}),
        (metrics.pcoc, {}),
        (metrics.mrr, {}),
        (metrics.ndcg_at, {"k": 5}),
        (metrics.hit_rate_at, {"k": 2}),
    ],
)
def test_each_draw_equals_the_metric_on_the_rows_of_the_drawn_users(metric, options):
    """The quick path with user weights is the slow path of copying rows, draw by draw."""
    rows = _clicks(np.random.default_rng(3), users=20, rows=200)
    code = np.unique(rows["user"], return_inverse=True)[1]
    quick = metrics._resampled(metric, rows["label"], rows["score"], code, None, options)
    drawn = np.random.default_rng(0).multinomial(code.max() + 1, np.full(code.max() + 1, 1 / (code.max() + 1)), size=4)
    for times, value in zip(drawn, quick(drawn.astype(float)), strict=True):
        label, score, group = [], [], []
        for one in np.flatnonzero(times):
            for copy in range(times[one]):
                own = code == one
                label.append(rows["label"][own]), score.append(rows["score"][own])
                group.append(np.full(own.sum(), one * 100 + copy))
        args = [np.concatenate(label), np.concatenate(score)]
        lists = metric in (metrics.gauc, metrics.mrr, metrics.ndcg_at, metrics.hit_rate_at)
        assert value == pytest.approx(metric(*args, *([np.concatenate(group)] if lists else []), **options))


def test_the_interval_covers_the_truth_about_as_often_as_it_claims():
    """100 samples of users from one population: the 90 % interval of the mean label's error holds it 80 to 98 times."""
    rng, held = np.random.default_rng(4), 0
    for _ in range(100):
        bias = rng.normal(size=80)
        user = np.repeat(np.arange(80), 5)
        label = bias[user] + rng.normal(size=400) * 0.1
        interval = metrics.bootstrap_interval(
            metrics.rmse, label=label, score=np.zeros(400), user=user, draws=200, confidence=0.9
        )
        held += interval.low <= 1.01**0.5 <= interval.high
    assert 80 <= held <= 98


def test_rows_of_one_user_widen_the_interval():
    """Ten copies of each row carry no news: the interval by users stays, one by rows would shrink."""
    rows = _clicks(np.random.default_rng(5), users=3000, rows=400)
    once = metrics.bootstrap_interval(metrics.auc, **rows, seed=1, draws=300)
    copied = {name: np.repeat(column, 10) for name, column in rows.items()}
    ten = metrics.bootstrap_interval(metrics.auc, **copied, seed=1, draws=300)
    assert ten.high - ten.low == pytest.approx(once.high - once.low, rel=1e-9)


def test_a_paired_difference_is_far_tighter_than_two_intervals_and_zero_against_itself():
    rows = _clicks(np.random.default_rng(6))
    near = np.clip(rows["score"] + 0.02 * np.random.default_rng(7).normal(size=3000), 0, 1)
    paired = metrics.paired_difference(metrics.auc, rows["label"], rows["score"], near, rows["user"], draws=300)
    alone = metrics.bootstrap_interval(metrics.auc, **rows, draws=300)
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)
    same = metrics.paired_difference(metrics.auc, rows["label"], rows["score"], rows["score"], rows["user"], draws=50)
    assert same == metrics.Interval(0, 0, 0)


def test_any_function_of_label_and_score_can_be_resampled():
    rows = _clicks(np.random.default_rng(8), rows=300)

    def share_above(label, score):
        return float(((score > 0.5) == label).mean())

    interval = metrics.bootstrap_interval(share_above, **rows, draws=50)
    assert interval.low < interval.value < interval.high


def test_the_same_seed_gives_the_same_interval():
    rows = _clicks(np.random.default_rng(9))
    first, again = (metrics.bootstrap_interval(metrics.gauc, **rows, draws=50, seed=3) for _ in range(2))
    assert first == again


def test_seed_interval_is_students_t():
    """Mean 2, sd 1, n 3: 4.3027 x 1 / sqrt(3) either side."""
    interval = metrics.seed_interval([1, 2, 3])
    assert interval.high - interval.value == pytest.approx(4.30265 / 3**0.5, rel=1e-4)
    assert np.isnan(metrics.seed_interval([1.0]).low)


def test_a_hundred_thousand_rows_are_resampled_in_seconds():
    rows = _clicks(np.random.default_rng(10), users=5000, rows=100_000)
    begun = time.perf_counter()
    metrics.bootstrap_interval(metrics.auc, **rows, draws=200)
    assert time.perf_counter() - begun < 20


def test_summary_names_what_each_task_reports():
    rows = _clicks(np.random.default_rng(11))
    assert {"auc", "gauc", "gauc_coverage", "logloss", "pcoc", "ece"} <= set(metrics.summary("ctr", **rows))
    assert {"mae", "rmse"} <= set(metrics.summary("rating", **rows))


def test_less_loss_counts_only_beyond_a_standard_error_over_users():
    """Ten rows of one user are one piece of luck; ten users who agree are not."""
    loss, other = np.zeros(10), np.r_[np.full(5, 1.0), np.full(5, -0.9)]
    assert not metrics.surely_lower(loss, other, np.arange(10))
    assert metrics.surely_lower(loss, np.full(10, 0.1), np.arange(10))
    assert not metrics.surely_lower(loss, np.r_[np.full(5, 0.3), np.full(5, -0.2)], np.repeat([0, 1], 5))


def test_a_rows_loss_adds_up_to_the_metric():
    """The mean of rows' losses is the log loss, and the root of it the RMSE."""
    label, score = np.array([0.0, 1.0, 1.0]), np.array([0.2, 0.9, 0.4])
    assert metrics.row_losses("ctr", label, score).mean() == pytest.approx(metrics.logloss(label, score))
    assert np.sqrt(metrics.row_losses("rating", label, score).mean()) == pytest.approx(metrics.rmse(label, score))
