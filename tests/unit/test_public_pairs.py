"""Benchmarks of clicks on Amazon's original review files: offered where the files lie, cases without test labels."""

import numpy as np
import pytest

from benchmarks import multi_domain_ctr as clicks
from benchmarks.public_pairs import offered
from benchmarks.two_domains import pair_of
from domains.errors import InvalidData


def test_click_settings_are_offered_where_their_files_lie(amazon_reviews, tmp_path):
    """Metadata of a category is no review file of it, and a folder without any set is refused by name."""
    assert offered(amazon_reviews, clicks.SETTINGS, pair_of) == ["amazon-movies-and-cds"]
    with pytest.raises(InvalidData, match="douban/"):
        offered(tmp_path, clicks.SETTINGS, pair_of)


def test_original_reviews_become_clicks_of_two_domains(amazon_reviews, tmp_path):
    """Both categories are judged, cold and warm apart; the rows asked about hold no label."""
    case = clicks.open_case(amazon_reviews, tmp_path, "amazon-movies-and-cds", 0)
    assert {"movies", "CDs", "movies warm", "CDs warm"} <= set(case.segments)
    assert set(np.unique(case.label)) == {0.0, 1.0}
    assert (case.segments["movies"] ^ case.segments["CDs"]).all()
