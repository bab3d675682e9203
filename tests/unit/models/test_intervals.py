"""Intervals cover what they claim to, and resample users, not rows."""

import time

import numpy as np
import pytest

from models.intervals import Interval, bootstrap_interval, paired_difference, seed_interval, surely_lower
from models.metrics import METRICS, Metric


def _clicks(rng: np.random.Generator, users: int = 300, rows: int = 3000) -> dict[str, np.ndarray]:
    user = rng.integers(0, users, rows)
    bent = rng.normal(size=users)
    score = 1 / (1 + np.exp(-rng.normal(size=rows) - 0.5 * bent[user]))
    return {"label": (rng.random(rows) < score).astype(float), "score": score, "user": user}


def test_the_interval_covers_the_truth_about_as_often_as_it_claims():
    """100 samples of users from one population: the 90 % interval of the mean label's error holds it 80 to 98 times."""
    rng, held = np.random.default_rng(4), 0
    for _ in range(100):
        bias = rng.normal(size=80)
        user = np.repeat(np.arange(80), 5)
        label = bias[user] + rng.normal(size=400) * 0.1
        interval = bootstrap_interval(
            METRICS["rmse"], label=label, score=np.zeros(400), user=user, draws=200, confidence=0.9
        )
        held += interval.low <= 1.01**0.5 <= interval.high
    assert 80 <= held <= 98


def test_rows_of_one_user_widen_the_interval():
    """Ten copies of each row carry no news: the interval by users stays, one by rows would shrink."""
    rows = _clicks(np.random.default_rng(5), users=3000, rows=400)
    once = bootstrap_interval(METRICS["auc"], **rows, seed=1, draws=300)
    copied = {name: np.repeat(column, 10) for name, column in rows.items()}
    ten = bootstrap_interval(METRICS["auc"], **copied, seed=1, draws=300)
    assert ten.high - ten.low == pytest.approx(once.high - once.low, rel=1e-9)


def test_a_paired_difference_is_far_tighter_than_two_intervals_and_zero_against_itself():
    rows = _clicks(np.random.default_rng(6))
    near = np.clip(rows["score"] + 0.02 * np.random.default_rng(7).normal(size=3000), 0, 1)
    paired = paired_difference(METRICS["auc"], rows["label"], rows["score"], near, rows["user"], draws=300)
    alone = bootstrap_interval(METRICS["auc"], **rows, draws=300)
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)
    same = paired_difference(METRICS["auc"], rows["label"], rows["score"], rows["score"], rows["user"], draws=50)
    assert same == Interval(0, 0, 0)


def test_a_metric_of_any_function_can_be_resampled():
    rows = _clicks(np.random.default_rng(8), rows=300)

    def share_above(label, score):
        return float(((score > 0.5) == label).mean())

    metric = Metric("share", "share", share_above, greater_is_better=True, per_user=False, tasks=())
    interval = bootstrap_interval(metric, **rows, draws=50)
    assert interval.low < interval.value < interval.high


def test_the_same_seed_gives_the_same_interval():
    rows = _clicks(np.random.default_rng(9))
    first, again = (bootstrap_interval(METRICS["gauc"], **rows, draws=50, seed=3) for _ in range(2))
    assert first == again


def test_seed_interval_is_students_t():
    """Mean 2, sd 1, n 3: 4.3027 x 1 / sqrt(3) either side."""
    interval = seed_interval([1, 2, 3])
    assert interval.high - interval.value == pytest.approx(4.30265 / 3**0.5, rel=1e-4)
    assert np.isnan(seed_interval([1.0]).low)


@pytest.mark.slow
def test_a_hundred_thousand_rows_are_resampled_in_seconds():
    rows = _clicks(np.random.default_rng(10), users=5000, rows=100_000)
    begun = time.perf_counter()
    bootstrap_interval(METRICS["auc"], **rows, draws=200)
    assert time.perf_counter() - begun < 20


def test_less_loss_counts_only_beyond_a_standard_error_over_users():
    """Ten rows of one user are one piece of luck; ten users who agree are not."""
    loss, other = np.zeros(10), np.r_[np.full(5, 1.0), np.full(5, -0.9)]
    assert not surely_lower(loss, other, np.arange(10))
    assert surely_lower(loss, np.full(10, 0.1), np.arange(10))
    assert not surely_lower(loss, np.r_[np.full(5, 0.3), np.full(5, -0.2)], np.repeat([0, 1], 5))
