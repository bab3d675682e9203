"""What an item is expected to get: smoothed, without the row that asks, and by the stars where there are stars."""

import numpy as np
import pytest
from scipy.special import logit

from orchestrator.data.batches import Examples
from orchestrator.data.target_encoding import fit_target_encoding, leave_one_out


def some_rows(stars: np.ndarray, item: np.ndarray) -> Examples:
    """Clicks that come of stars above 3, of users who each rate twenty items."""
    rows = len(stars)
    return Examples(
        domain="books",
        number=1,
        user=1 + np.arange(rows) // 20,
        item=item,
        time_us=np.arange(rows),
        label=(stars > 3).astype(np.float32),
        value=stars.astype(np.float32),
        context=np.zeros((rows, 0), np.int64),
        weight=np.ones(rows, np.float32),
        offset=np.zeros(rows, np.float32),
    )


@pytest.fixture
def rated() -> Examples:
    """Items 1 to 40, the higher the better liked."""
    chance = np.random.default_rng(0)
    item = chance.integers(1, 41, 4000)
    return some_rows(np.clip(np.round(3.3 + item / 40 + chance.normal(0, 1, 4000)), 1, 5), item)


def test_of_two_items_clicked_alike_the_one_with_more_stars_is_expected_to_get_more(rated: Examples):
    """Five stars and four are one label but not one item."""
    both = np.isin(rated.item, [7, 8])
    stars = rated.value.copy()
    stars[both] = np.where(np.arange(both.sum()) % 2, 3, np.where(rated.item[both] == 7, 5, 4))
    stars[rated.item == 8] = np.where(np.arange((rated.item == 8).sum()) % 2, 3, 4)
    stars[rated.item == 7] = np.where(np.arange((rated.item == 7).sum()) % 2, 3, 5)
    means = fit_target_encoding(some_rows(stars, rated.item), 41, "ctr").means
    assert means[7] > means[8]


def test_labels_that_say_all_there_is_to_say_are_heard_alone(rated: Examples):
    """Where the value is the click itself, means are the smoothed click rates."""
    clicks = some_rows(np.where(rated.label > 0, 4.0, 1.0), rated.item)
    plain = fit_target_encoding(clicks, 41, "ctr").means
    overall, rows = clicks.label.mean(), clicks.item == 5
    expected = overall + (clicks.label[rows] - overall).sum() / (rows.sum() + 20)
    assert plain[5] == pytest.approx(expected, rel=1e-5)


def test_a_row_starts_from_its_items_mean_without_itself(rated: Examples):
    """Turning one row's stars round moves what all rows of the item start from, but not that row's own start."""
    found = fit_target_encoding(rated, 41, "ctr")
    start = logit(found.means[rated.item]) + leave_one_out(rated, found).offset
    stars = rated.value.copy()
    stars[0] = 6 - stars[0] if stars[0] != 3 else 5
    other = fit_target_encoding(some_rows(stars, rated.item), 41, "ctr")
    after = logit(other.means[rated.item]) + leave_one_out(rated, other).offset
    same = np.flatnonzero(rated.item == rated.item[0])[1:]
    # The row's user and the two weights hear of it a little; the item's other rows hear of it much more.
    assert abs(after[0] - start[0]) < 0.2 * np.abs(after[same] - start[same]).mean()


def test_an_item_never_seen_is_expected_to_get_what_all_get(rated: Examples):
    """Entry 0 and items without rows are the overall click rate."""
    means = fit_target_encoding(rated, 60, "ctr").means
    np.testing.assert_allclose(means[[0, 50]], rated.label.mean(), rtol=1e-5)
