"""Tables of what people and files have written: shown, and saved as CSV, without becoming a spreadsheet's formulas.

Streamlit's tables have a button that saves them as CSV, so what is shown is made harmless too.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

import streamlit as st

_FORMULA = re.compile(r"\s*[=+\-@\t\r\n＝＋－＠]")
_NUMBERS = re.compile(r"[\s\d+\-.,;:%±–()\[\]]*")


def harmless(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: text that starts like one gets a leading apostrophe."""
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBERS.fullmatch(value):
        return f"'{value}"
    return value


def harmless_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of cells that no spreadsheet takes for formulas; titles of columns included."""
    return [{harmless(title): harmless(value) for title, value in row.items()} for row in rows]


def show(rows: Sequence[dict[str, Any]], **options: Any) -> None:
    """A table on the page; ``options`` are those of ``st.dataframe``."""
    st.dataframe(harmless_rows(rows), **options)


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of equal columns as CSV with a header."""
    clean = harmless_rows(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(clean[0]))
    writer.writeheader()
    writer.writerows(clean)
    return text.getvalue()
