"""Codes mean the same thing in training and in serving, whatever comes later."""

import numpy as np
import pyarrow as pa
import pytest

from domains.errors import InvalidSpec
from orchestrator.data.encoding import FeatureEncoder, Field, SourceRange, fit_fields


def an_encoder(**changes):
    fields = {
        "task": "ctr",
        "item_fields": (Field("category", "category", values=("food", "toys")),),
        "user_fields": (),
        "context_fields": (),
        "domain_fields": (),
        "sources": (SourceRange("video", 1, 0, 5), SourceRange("shop", 3, 4, 3)),
        "slots": ("video", "shop"),
        "lifelong": 10,
        "short": 4,
    }
    return FeatureEncoder(**{**fields, **changes})


def test_a_category_has_a_code_of_its_own_and_everything_unseen_shares_zero():
    """Known values are numbered by frequency; missing and new ones are 0."""
    field = Field.fit("category", "category", [pa.chunked_array([["toys", "food", "food", None]])])
    assert field.values == ("food", "toys")
    assert field.encode(["food", "toys", "boats", None]).tolist() == [1, 2, 0, 0]
    assert field.size == 3


def test_a_number_falls_into_quantile_bins_and_a_missing_one_into_zero():
    """Codes grow with the number and stay inside the table."""
    field = Field.fit("price", "number", [pa.chunked_array([np.arange(1000.0)])])
    codes = field.encode([None, "-5", "0", "500", "1e9", "not a number"])
    assert codes[0] == 0
    assert codes[5] == 0
    assert codes[1] == codes[2] == 1
    assert codes[2] < codes[3] < codes[4] == field.size - 1


def test_a_constant_number_still_encodes():
    """One distinct value leaves one edge, not a crash."""
    field = Field.fit("price", "number", [pa.chunked_array([[3.0, 3.0, 3.0]])])
    assert 0 < field.encode([3.0])[0] < field.size


def test_one_name_cannot_mean_a_number_here_and_a_category_there():
    """The error names the feature."""
    with pytest.raises(InvalidSpec, match="price") as caught:
        fit_fields([{"price": "number"}, {"price": "category"}], [None, None])
    assert caught.value.details["field"] == "price"


def test_source_rows_follow_their_domains_offset_and_never_reach_a_neighbour():
    """Items newer than the backbone, unknown domains and index 0 all map to the out-of-vocabulary row."""
    encoder = an_encoder()
    number = np.array([1, 1, 1, 1, 3, 3, 3, 2, 99, -1])
    local = np.array([0, 1, 4, 5, 1, 2, 3, 1, 1, 1])
    assert encoder.source_rows(number, local).tolist() == [0, 1, 4, 0, 5, 6, 0, 0, 0, 0]
    assert encoder.source_rows_total == 7


def test_a_layout_read_back_is_the_same_layout(tmp_path):
    """What training wrote is what serving reads."""
    encoder = an_encoder(trained_until_us=17)
    encoder.save(tmp_path)
    assert FeatureEncoder.load(tmp_path) == encoder


def test_columns_that_a_table_lacks_are_missing_values():
    """A domain without the feature gets code 0 for all of its items."""
    encoder = an_encoder()
    assert encoder.codes(encoder.item_fields, pa.table({"item_id": ["a", "b"]}), 2).tolist() == [[0], [0]]
