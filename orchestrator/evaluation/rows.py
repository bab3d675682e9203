"""The rows that a report's table may hold: how people read them, and what the gate makes of a better one.

A new baseline is named here once: the report's page, the web pages and the gate read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["own data", "own network", "answers now", "reference"]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        role: ``own data``: reads the domain's own rows alone, so a better one says not to borrow. ``answers now``: a
            version that is worse would be a step back. ``own network``: borrows too, and could only be served as a
            second network for this domain, so a better one holds a version where it is required,
            and is only named where it is not. ``reference``: decides nothing.
        remark: completes "NAME, which is ..." or "NAME, ..., would be better still".
    """

    label: str
    role: Role = "reference"
    remark: str = ""


ROWS = {
    "adapter": Row("this version"),
    "shared": Row("shared model"),
    "zero_shot": Row("shared model, zero-shot", "answers now", "the shared model without any fine-tuning"),
    "live": Row("version live at launch", "answers now", "the version that is live now"),
    "popularity": Row("popularity", "own data"),
    "item_mean": Row("item mean", "own data"),
    "item_user_bias": Row("item + user bias", "own data"),
    "declared_columns": Row("regression on the declared columns", "own data"),
    "train_mean": Row("training mean"),
    "single_domain": Row("single-domain model", "own data"),
    "full_fine_tune": Row("full fine-tune", "own network", "which moves weights that other domains share"),
    "shared_bottom": Row("shared-bottom model", "own network", "a network that is trained anew with every domain"),
    "scratch": Row(
        "trained from scratch",
        "own network",
        "the same network on the same histories without the shared model's training",
    ),
    "best_reachable": Row("best reachable"),
    "strongest": Row("strongest of all required"),
    "strongest_plain": Row("strongest plain row"),
}
SEGMENTS = {
    "cold_user": "cold users (the gate looks at these)",
    "warm_user": "warm users (later events)",
    "cold_item": "items never seen in training",
    "head_item": "popular items",
    "tail_item": "rare items",
    "short_history": "users with under 20 source events",
    "long_history": "users with 20 or more source events",
}
FREE = ("item_mean", "item_user_bias", "declared_columns")
"""What a team could have for nothing: rows that every launch holds, whatever is asked."""
REQUIRED_BY = {"always": "every launch", "policy": "policy", "gate": "the gate", "launch": "this launch"}


def label(name: str) -> str:
    """A row as people read it; one that is not in the table is shown by its name."""
    return ROWS[name].label if name in ROWS else name.replace("_", " ")
