"""Rows of a table that need no training run."""

import numpy as np
import pytest

from orchestrator.evaluation.plain_rows import STRENGTH, item_mean, popularity

ITEM = np.array([1, 1, 1, 2])
LABEL = np.array([1.0, 1.0, 0.0, 0.0])


def test_an_item_that_training_never_saw_gets_the_mean_label():
    """Others are drawn towards it, the more so the fewer rows they have."""
    often, rarely, never = item_mean(ITEM, LABEL, np.array([1, 2, 9]))
    assert never == LABEL.mean()
    assert often == pytest.approx((2 + STRENGTH * 0.5) / (3 + STRENGTH))
    assert rarely == pytest.approx(STRENGTH * 0.5 / (1 + STRENGTH))


def test_popularity_keeps_the_order_of_clicks():
    """A probability that rises with how often an item was taken."""
    often, rarely, never = popularity(ITEM, LABEL, np.array([1, 2, 9]))
    assert 1 > often > rarely
    assert rarely == never > 0


def test_popularity_of_rows_with_one_label_is_that_label():
    """A small share of a domain may hold no click at all."""
    assert popularity(np.array([1, 2]), np.zeros(2), np.array([1, 5])).tolist() == [0.0, 0.0]
