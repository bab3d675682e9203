"""Gains of rank counts, by hand, against scikit-learn, and over random orders of ties."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from models.ranking_metrics import hit, ndcg, rank_counts, reciprocal_rank


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_gains_of_rank_counts_are_those_of_the_whole_list(levels):
    """With many ties, some, and next to none: every order of the tied candidates has the same chance."""
    chance = np.random.default_rng(levels)
    score = chance.integers(0, levels, (30, 25)).astype(float)
    relevant = chance.integers(0, 25, 30)
    counts = rank_counts(score, relevant)
    assert ndcg(counts).mean() == pytest.approx(ndcg_score(np.eye(25)[relevant], score, k=10))
    own = np.take_along_axis(score, relevant[:, None], 1)
    ranks = [np.arange((s > o).sum() + 1, (s >= o).sum() + 1) for s, o in zip(score, own, strict=True)]
    assert reciprocal_rank(counts) == pytest.approx([(1 / rank).mean() for rank in ranks])
    assert hit(counts) == pytest.approx([(rank <= 10).mean() for rank in ranks])


def test_gains_by_hand():
    """Query a: relevant second of three. Query b: first of two."""
    counts = np.concatenate([rank_counts(np.array([[0.9, 0.5, 0.1]]), [1]), rank_counts(np.array([[0.8, 0.2]]), [0])])
    assert reciprocal_rank(counts).mean() == pytest.approx((1 / 2 + 1) / 2)
    assert hit(counts, k=1).mean() == pytest.approx(1 / 2)
    assert hit(counts, k=2).mean() == pytest.approx(1)
    assert ndcg(counts, k=1).mean() == pytest.approx(1 / 2)
    assert ndcg(counts, k=10).mean() == pytest.approx((1 / np.log2(3) + 1) / 2)


def test_a_constant_score_earns_what_a_random_order_earns():
    """Ties must not flatter: 4 candidates of one score rank the relevant one 1..4 with equal chance."""
    counts = rank_counts(np.ones((1, 4)), np.array([3]))
    assert reciprocal_rank(counts) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert hit(counts, k=3) == pytest.approx(3 / 4)
    assert ndcg(counts, k=1) == pytest.approx(1 / 4)


def test_only_the_rank_counts():
    """Above two candidates of four, level with none: third."""
    assert rank_counts(np.array([[3.0, 1.0, 2.0, 5.0]]), np.array([2])).tolist() == [[2, 1]]
