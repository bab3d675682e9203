"""Learning curves: planted power laws are found again, and intervals own up to what few points cannot tell."""

import numpy as np
import pytest

from models.metrics import METRICS
from orchestrator.evaluation.learning_curve import FAR, Curves, Judged, backtest, gains, rows_needed, user_weights

ROWS = np.array([500.0, 1_000.0, 2_000.0, 3_500.0, 5_000.0])


def planted(*, adapter=(0.50, 1.5, 0.5), baseline=(0.55, 0.2, 0.5), users=400, noise=0.02, seed=0) -> Curves:
    """Errors a + b n^-c of an adapter and a baseline, seen by users who differ, in four folds."""
    random = np.random.default_rng(seed)
    counts = random.integers(5, 20, users)
    user = random.normal(0, 0.1, (users, 1))

    def scores(a: float, b: float, c: float) -> np.ndarray:
        return np.repeat(a + b * ROWS**-c + user + random.normal(0, noise, (users, len(ROWS))), counts, axis=0)

    person = np.repeat(np.arange(users), counts)
    judged = Judged(METRICS["mae"], np.zeros(len(person)), person, np.arange(users) % 4)
    return Curves(ROWS, {"adapter": scores(*adapter), "baseline": scores(*baseline)}, judged)


def test_folds_are_drawn_as_wholes_and_users_within_them():
    """Every draw holds as many users as there are, and whole folds are missing from some draws."""
    fold = np.repeat(np.arange(4), 25)
    weight = user_weights(fold, draws=200, seed=0)
    assert (weight.sum(1) == 100).all()
    by_fold = weight.reshape(200, 4, 25).sum(2)
    assert set(np.unique(by_fold)) <= {0, 25, 50, 75, 100}
    assert (by_fold == 0).any()


def test_a_planted_crossing_lies_in_the_interval():
    """0.50 + 1.5 n^-.5 meets 0.55 + 0.2 n^-.5 at n = 26^2 = 676."""
    found = rows_needed(planted(), "adapter", "baseline")
    assert found.low <= 676 <= found.high
    assert found.certain > 0.95


def test_a_baseline_that_stays_better_is_out_of_reach():
    """The adapter's own limit is worse: no amount of data helps, and the forecast says so."""
    found = rows_needed(planted(adapter=(0.60, 0.5, 0.5), baseline=(0.50, 0.2, 0.5)), "adapter", "baseline")
    assert found.rows is None
    assert found.certain < 0.05


def test_an_adapter_that_is_ahead_from_the_first_needs_no_more():
    """The smallest amount measured stands for that or less."""
    found = rows_needed(planted(adapter=(0.40, 0.5, 0.5)), "adapter", "baseline")
    assert found.rows == found.high == ROWS[0]


def test_fewer_points_make_a_wider_interval():
    """Three points say less of what comes at a hundred times the data than five do."""
    curves, far = planted(noise=0.1), np.array([FAR * ROWS[-1]])
    width = [np.ptp(np.quantile(gains(curves, "adapter", "baseline", far, points=p), (0.025, 0.975))) for p in (3, 5)]
    assert width[0] > width[1]


@pytest.mark.slow
def test_forecasts_of_planted_curves_hold_about_as_often_as_they_say():
    """Over many marketplaces the 95 % interval holds at least four times in five, where the law is a power law."""
    checks = [
        check for seed in range(25) for check in backtest(planted(users=120, seed=seed), "adapter", ("baseline",))
    ]
    assert len(checks) == 25 * 3
    assert np.mean([check.held for check in checks]) >= 0.8


def test_ratings_are_told_by_the_root_of_the_mean():
    """RMSE, not the mean square, where the gate measures by it."""
    judged = Judged(METRICS["rmse"], np.zeros(4), np.array([0, 0, 1, 1]), np.array([0, 1]))
    assert Curves(ROWS[:1], {"adapter": np.full((4, 1), 2.0)}, judged).over_all("adapter") == pytest.approx([2.0])


@pytest.mark.parametrize("metric", ["auc", "gauc"])
def test_an_order_is_measured_within_each_fold_and_taken_from_one(metric):
    """Two folds were scored by networks of their own, one of which scores everything higher."""
    random = np.random.default_rng(0)
    label, person = (random.random(4_000) < 0.4).astype(float), random.integers(0, 80, 4_000)
    fold = np.arange(80) % 2
    score = label + random.normal(0, 1, 4_000)
    judged = Judged(METRICS[metric], label, person, fold)
    (error,) = judged.errors(np.stack([score + 9 * fold[person]], 1), np.ones((1, 80)))[0]
    parts = [METRICS[metric](label[at], score[at], person[at]) for at in (fold[person] == 0, fold[person] == 1)]
    assert error == pytest.approx(1 - np.average(parts, weights=np.bincount(fold[person])))
    drawn = judged.errors(np.stack([score, -score], 1), user_weights(fold, draws=200, seed=0))
    assert drawn.shape == (200, 2)
    assert np.quantile(drawn[:, 0], 0.025) < 1 - METRICS[metric](label, score, person) < np.quantile(drawn[:, 0], 0.975)
    assert (drawn[:, 0] < drawn[:, 1]).all()
