"""Rows to judge click models by, made of nothing but steps that users took: time-forward, with drawn negatives.

Of each user's steps in a domain the last two are the test and the one before is to choose by; the latest of the others
teach. Each step is a row of label 1, and with it stand ``per_positive`` rows of label 0 at the same moment: items that
other people took and this user had not taken.

    matched  drawn from the positives of the same part (train, validation, test), each as often as people took it: then
             positives and negatives have one distribution of items, and popularity tells nothing
    uniform  drawn evenly from the domain's whole catalogue: then popularity tells much
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from orchestrator.data.batches import Examples

Negatives = Literal["matched", "uniform"]
TESTED = 2
TRIES = 8
NEVER = int(np.iinfo(np.int64).max)


@dataclass(frozen=True)
class Parts:
    """Rows of each part, those of one step side by side, the positive first.

    ``first_us`` (users,) is the moment of each user's first taught, validated or tested step, whichever comes first,
    and ``first_test_us`` that of their first tested one; ``NEVER`` for users without one.
    """

    train: Examples
    validation: Examples
    test: Examples
    first_us: np.ndarray
    first_test_us: np.ndarray


def draw(
    steps: Examples,
    *,
    catalogue: int,
    negatives: Negatives,
    per_positive: int,
    taught: int,
    seed: int,
    people: int | None = None,
) -> Parts:
    """Split a domain's steps and draw negatives.

    Args:
        steps: every step of the domain, in any order, all of label 1.
        catalogue: items of the domain, with the row of the unknown.
        taught: latest steps of each user that teach, at most.
        people: how many users to take, drawn by the seed; None for all.
    """
    steps = steps.take(np.lexsort((steps.time_us, steps.user)))
    place, count = _places(steps.user)
    left = count - 1 - place  # steps of the user after this one
    random = np.random.default_rng([seed, 1])
    users = np.unique(steps.user[count > TESTED])
    drawn = np.isin(steps.user, users if people is None else random.permutation(users)[:people])
    chosen = {
        "train": drawn & (left > TESTED) & (left <= TESTED + taught),
        "validation": drawn & (left == TESTED),
        "test": drawn & (left < TESTED),
    }
    # What a user takes later is not known while a model is trained and chosen: only what they had taken is spared.
    known = {"train": left > TESTED, "validation": left >= TESTED, "test": left >= 0}
    parts = {}
    for name, rows in chosen.items():
        positives = steps.take(rows)
        had = np.unique(_keys(steps.user, steps.item, catalogue)[known[name]])
        pool = positives.item if negatives == "matched" else np.arange(1, catalogue)
        parts[name] = _with_negatives(
            positives, pool, had, catalogue=catalogue, per_positive=per_positive, random=random
        )
    used = chosen["train"] | chosen["validation"] | chosen["test"]
    return Parts(**parts, first_us=first_us(steps, used), first_test_us=first_us(steps, chosen["test"]))


def _with_negatives(
    positives: Examples,
    pool: np.ndarray,
    had: np.ndarray,
    *,
    catalogue: int,
    per_positive: int,
    random: np.random.Generator,
) -> Examples:
    rows = positives.take(np.repeat(np.arange(len(positives)), 1 + per_positive))
    negative = np.arange(len(rows)) % (1 + per_positive) > 0
    item, wrong = rows.item.copy(), negative.copy()
    for _ in range(TRIES):
        item[wrong] = random.choice(pool, int(wrong.sum()))
        wrong = negative & np.isin(_keys(rows.user, item, catalogue), had)
        if not wrong.any():
            break
    label = np.where(negative, 0, 1).astype(np.float32)
    # A user who took nearly all that could be drawn loses the row.
    return replace(rows, item=item, label=label, value=label).take(~wrong)


def first_us(steps: Examples, chosen: np.ndarray) -> np.ndarray:
    """The moment of each user's first chosen row, (users,); ``NEVER`` where none of theirs is."""
    first = np.full(int(steps.user.max(initial=0)) + 1, NEVER)
    np.minimum.at(first, steps.user[chosen], steps.time_us[chosen])
    return first


def _places(user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of rows sorted by user: the place of each among its user's rows, and how many there are, both (N,)."""
    count = np.bincount(user)
    first = np.cumsum(count) - count
    return np.arange(len(user)) - first[user], count[user]


def _keys(user: np.ndarray, item: np.ndarray, catalogue: int) -> np.ndarray:
    return user.astype(np.int64) * catalogue + item
