"""What people have written leaves the pages as text, never as a formula."""

import csv
import io

import pytest

from ui.components import tables


@pytest.mark.parametrize(
    "cell",
    ["=1+1", '=HYPERLINK("http://x")', "+cmd|' /C calc'!A0", "-2+3+cmd|x", "@SUM(1)", "\t=1", "\r=1", " =1", "＝1"],
)
def test_a_cell_that_starts_like_a_formula_is_saved_as_text(cell):
    """In the values and in the titles of a CSV."""
    rows = list(csv.reader(io.StringIO(tables.as_csv([{"Row": cell, cell: "x"}]), newline="")))
    assert all(not value.lstrip().startswith(("=", "+", "-", "@", "＝")) for row in rows for value in row), rows
    assert rows[1][0] == f"'{cell}"


@pytest.mark.parametrize("cell", ["-0.5", "+0.012 (0.01–0.02)", "1,000", "u1,i1,=1", "", "–", -3, 2.5, None, True])
def test_numbers_and_plain_text_stay_as_they_are(cell):
    """A minus sign is no formula."""
    assert tables.harmless(cell) is cell
