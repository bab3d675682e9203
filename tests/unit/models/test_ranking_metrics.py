"""Places of the right answer agree with the list metrics that see every score."""

import numpy as np
import pytest

from models import metrics
from models.ranking_metrics import hit, ndcg, places, reciprocal_rank


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_places_are_worth_what_the_list_metrics_say(levels):
    """With many ties, some, and next to none."""
    chance = np.random.default_rng(levels)
    score = chance.integers(0, levels, (30, 25)).astype(float)
    right = chance.integers(0, 25, 30)
    label = np.eye(25)[right].ravel()
    flat, question = score.ravel(), np.repeat(np.arange(30), 25)
    placed = places(score, right)
    assert reciprocal_rank(placed).mean() == pytest.approx(metrics.mrr(label, flat, question))
    assert ndcg(placed).mean() == pytest.approx(metrics.ndcg_at(label, flat, question))
    assert hit(placed).mean() == pytest.approx(metrics.hit_rate_at(label, flat, question))


def test_only_the_place_in_the_list_counts():
    """Above two candidates of four, level with none: third place."""
    assert places(np.array([[3.0, 1.0, 2.0, 5.0]]), np.array([2])).tolist() == [[2, 1]]
