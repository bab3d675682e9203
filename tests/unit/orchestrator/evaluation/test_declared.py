"""A regression on the declared columns finds what they tell, and never looks at test rows."""

import numpy as np
import pytest

from domains.events.splits import Split
from models.metrics import auc
from orchestrator.evaluation.declared import regression

NOBODY = np.zeros(0, np.int64)


@pytest.fixture
def planted():
    rng = np.random.default_rng(0)
    codes = {"item kind": rng.integers(0, 6, 3000), "context hour": rng.integers(0, 24, 3000)}
    label = (rng.random(3000) < np.array([0.05, 0.1, 0.2, 0.4, 0.6, 0.8])[codes["item kind"]]).astype(np.float32)
    parts = np.split(np.arange(3000), [2000, 2500])
    return codes, label, Split(*parts, NOBODY, None)


def test_it_finds_what_a_column_tells(planted):
    """A category without an order is read as such."""
    codes, label, split = planted
    score = regression("ctr", codes, label, split)
    assert auc(label[split.test], score[split.test]) > 0.75
    rating = regression("rating", codes, label * 4, split)
    assert np.corrcoef(rating[split.test], label[split.test])[0, 1] > 0.4


@pytest.mark.parametrize("task", ["ctr", "rating"])
def test_test_labels_change_nothing(planted, task):
    """Other labels on the test rows leave every score as it was."""
    codes, label, split = planted
    other = label.copy()
    other[split.test] = 1 - other[split.test]
    assert np.array_equal(regression(task, codes, label, split), regression(task, codes, other, split))


@pytest.mark.parametrize("columns", [{}, {"item kind": np.arange(3000) % 3}])
def test_nothing_to_fit_gives_everybody_the_mean(planted, columns):
    """No column, or one label alone, is no error."""
    _, label, split = planted
    if columns:
        label = np.ones_like(label)
    assert np.ptp(regression("ctr", columns, label, split)) == 0
