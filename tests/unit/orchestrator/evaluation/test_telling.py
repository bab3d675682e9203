"""Features that knew the label before it was there, and honest ones that must not be blamed."""

from dataclasses import replace

import numpy as np
import pytest

from domains.events.splits import cold_users
from orchestrator.evaluation.telling import Feature, JudgedRows, suspicions

DAY_US = 86_400_000_000
START_US = 1_700_000_000_000_000
OBJECT = np.dtype(object)


def made(task="ctr", *, timed=True, rows=12_000, users=600, items=150, seed=0):
    """Rows of users and items that differ in how much they like and are liked, and click or rate by that."""
    random = np.random.default_rng(seed)
    user, item = random.integers(1, users + 1, rows), random.integers(1, items + 1, rows)
    time_us = np.sort(START_US + random.integers(0, 60 * DAY_US, rows))
    liking = random.normal(0, 0.5, users + 1)[user] + random.normal(0, 0.7, items + 1)[item]
    if task == "ctr":
        label = (random.random(rows) < 1 / (1 + np.exp(1 - liking))).astype(float)
    else:
        label = np.clip(np.round(3.5 + liking + random.normal(0, 0.8, rows)), 1, 5)
    split = cold_users(user, np.ones(rows, bool), time_us if timed else None, share=0.2, validation_share=0.1, seed=1)
    return JudgedRows(
        task=task,
        user=user,
        item=item,
        label=label,
        time_us=time_us if timed else None,
        train=np.sort(np.r_[split.train, split.validation]),
        held=split.test if split.cut_us is None else np.flatnonzero(time_us >= split.cut_us),
    )


def said(rows, values, of="context", name="column"):
    """Why one column is suspected; None where it is not."""
    return {feature.name: why for feature, why in suspicions(rows, [Feature(name, of, values)])}.get(name)


def mean_of(rows, group, chosen=None):
    """The mean label of each row's group over the chosen rows."""
    chosen = np.ones(len(rows.label), bool) if chosen is None else chosen
    count = np.bincount(group[chosen], minlength=group.max() + 1)
    total = np.bincount(group[chosen], rows.label[chosen], minlength=group.max() + 1)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)[group]


def running(rows, group, *, own):
    """The sum of labels of each row's group so far, with the row's own or without."""
    found, sums = np.zeros(len(rows.label)), {}
    for at, (key, label) in enumerate(zip(group.tolist(), rows.label.tolist(), strict=True)):
        before = sums.get(key, 0.0)
        sums[key] = before + label
        found[at] = sums[key] if own else before
    return found


def so_far(group):
    """How many rows of each row's group came before it."""
    return running(replace(CLICKS, label=np.ones(len(group))), group, own=False)


def flipped(rows, share, seed=3):
    """The label with a share of wrong ones."""
    random = np.random.default_rng(seed)
    wrong = random.random(len(rows.label)) < share
    return np.where(wrong, random.permutation(rows.label) if rows.task == "rating" else 1 - rows.label, rows.label)


CLICKS, RATINGS, UNTIMED = made(), made("rating"), made("rating", timed=False)


@pytest.mark.parametrize("rows", [CLICKS, RATINGS, made(timed=False), UNTIMED], ids=lambda rows: rows.task)
@pytest.mark.parametrize("share", [0.0, 0.03, 0.1, 0.15])
def test_a_column_that_is_nearly_the_label_is_named(rows, share):
    """As it is, with some labels wrong, as a category, upside down, and where it is filled for some rows alone."""
    column = flipped(rows, share)
    noisy = column + np.random.default_rng(1).normal(0, 0.01, len(column))
    for values in (column, -3 * column, noisy, np.array([f"state {value:g}" for value in column], OBJECT)):
        assert said(rows, values), share
    half = np.where(np.random.default_rng(2).random(len(column)) < 0.5, column, np.nan)
    if share <= 0.03 and rows.task == "rating":
        assert said(rows, half)


def test_a_column_that_is_filled_only_after_a_click_is_named():
    """What was paid, where somebody paid: a third of the clicks, and nothing else."""
    random = np.random.default_rng(0)
    paid = np.where((CLICKS.label > 0) & (random.random(len(CLICKS.label)) < 0.35), random.gamma(2, 9, 12_000), np.nan)
    assert "come with a positive" in said(CLICKS, paid)
    assert "come with a positive" in said(CLICKS, np.where(np.isnan(paid), None, "paid"))
    seconds = np.where(CLICKS.label > 0, random.gamma(2, 30, 12_000), random.gamma(1, 2, 12_000))
    assert "AUC" in said(CLICKS, seconds)


@pytest.mark.parametrize("rows", [CLICKS, RATINGS], ids=lambda rows: rows.task)
@pytest.mark.parametrize("whose", ["item", "user"])
def test_an_average_over_all_rows_is_named_and_one_over_earlier_rows_is_not(rows, whose):
    """Exact, rounded, smoothed, on another scale, as text, in the items file or written beside each event."""
    group, later = getattr(rows, whose), np.zeros(len(rows.label), bool)
    later[rows.held] = True
    everything = mean_of(rows, group)
    ways = [everything, np.round(everything, 2), 20 * everything - 7, np.log1p(everything)]
    ways.append(np.array([f"{value:.2f}" for value in everything], OBJECT))
    for values in ways:
        for of in (whose, "context"):
            assert said(rows, values, of)
    for values in (mean_of(rows, group, ~later), np.random.default_rng(0).random(group.max() + 1)[group]):
        for of in (whose, "context"):
            assert said(rows, values, of) is None


@pytest.mark.parametrize("whose", ["item", "user"])
def test_a_count_up_to_the_end_of_the_file_is_named_and_an_earlier_one_is_not(whose):
    """How often an item was taken or shown in the whole file is its popularity of the future too."""
    group, later = getattr(CLICKS, whose), np.zeros(len(CLICKS.label), bool)
    later[CLICKS.held] = True
    for weight in (np.ones(len(group)), CLICKS.label):
        whole, earlier = (
            np.bincount(group, weight * chosen, minlength=group.max() + 1)[group] for chosen in (True, ~later)
        )
        for values in (whole, np.log1p(whole), whole / whole.max()):
            assert said(CLICKS, values, whose)
        assert said(CLICKS, earlier, whose) is None


def test_an_average_over_all_rows_is_named_without_time_too():
    """Stars of an items file that were counted on the rows of the test."""
    for whose in ("item", "user"):
        group = getattr(UNTIMED, whose)
        assert said(UNTIMED, mean_of(UNTIMED, group), whose)
        assert said(UNTIMED, np.random.default_rng(0).random(group.max() + 1)[group], whose) is None


def test_what_was_learnt_of_a_day_is_named_when_it_came_from_that_day():
    """The mean of an item's rows of one day of a far time zone, written beside each of them."""
    rows = made(rows=40_000, items=60)
    day = rows.item * 100_000 + (rows.time_us + DAY_US // 24 * 9) // DAY_US
    assert said(rows, mean_of(rows, day))


@pytest.mark.parametrize("rows", [CLICKS, RATINGS], ids=lambda rows: rows.task)
@pytest.mark.parametrize("whose", ["item", "user", "domain"])
def test_a_running_sum_or_mean_is_named_only_if_it_holds_the_row_itself(rows, whose):
    """Its change since the row before is the row's own label; without the row itself it is the label before."""
    group = np.zeros(len(rows.label), np.int64) if whose == "domain" else getattr(rows, whose)
    place = so_far(group)
    assert said(rows, running(rows, group, own=True))
    assert said(rows, running(rows, group, own=True) / (place + 1))
    before = running(rows, group, own=False)
    assert said(rows, before) is None
    assert said(rows, np.where(place > 0, before / np.maximum(place, 1), np.nan)) is None


@pytest.mark.parametrize("rows", [CLICKS, RATINGS, UNTIMED], ids=["clicks", "ratings", "without time"])
@pytest.mark.parametrize("whose", ["item", "user"])
def test_an_average_over_the_other_rows_of_the_file_is_named(rows, whose):
    """Without its own row it is lower where that was high, and it holds the rows to come."""
    group = getattr(rows, whose)
    count, total = np.bincount(group)[group], np.bincount(group, rows.label)[group]
    others = (total - rows.label) / np.maximum(count - 1, 1)
    assert said(rows, np.where(count > 1, others, np.nan))


@pytest.mark.parametrize("unit", [1, 1_000, 1_000_000])
def test_a_later_time_is_named_in_whatever_unit(unit):
    """When the page was closed: late after a click."""
    random = np.random.default_rng(0)
    seconds = np.where(CLICKS.label > 0, random.gamma(3, 100, 12_000), random.gamma(1, 5, 12_000))
    closed = CLICKS.time_us / 1e6 + seconds
    assert "the row's time" in said(CLICKS, np.round(closed * unit))
    assert said(CLICKS, np.round((CLICKS.time_us / 1e6 + random.gamma(1, 60, 12_000)) * unit)) is None


def test_an_average_over_more_rows_than_there_are_here_is_named_too():
    """Rows of the file that were left out here count in it as well."""
    everything = made("rating", rows=14_000)
    here = np.sort(np.random.default_rng(0).permutation(14_000)[:12_000])
    split = cold_users(
        everything.user[here], np.ones(12_000, bool), everything.time_us[here], share=0.2, validation_share=0.1, seed=1
    )
    rows = JudgedRows(
        task="rating",
        user=everything.user[here],
        item=everything.item[here],
        label=everything.label[here],
        time_us=everything.time_us[here],
        train=np.sort(np.r_[split.train, split.validation]),
        held=np.flatnonzero(everything.time_us[here] >= split.cut_us),
    )
    assert said(rows, mean_of(everything, everything.item)[here], "item")


@pytest.mark.parametrize("rows", [CLICKS, RATINGS, UNTIMED], ids=["clicks", "ratings", "without time"])
def test_honest_columns_are_not_blamed(rows):
    """What is known beforehand passes, also where it says much: the liking of items itself, places, hours, counts."""
    random = np.random.default_rng(0)
    size = len(rows.label)
    liking = mean_of(rows, rows.item, np.isin(np.arange(size), rows.train))
    honest = {
        "noise": random.random(size),
        "hour": random.integers(0, 24, size).astype(float),
        "row number": np.arange(size, dtype=float),
        "device": random.choice(np.array(["phone", "desk", None], OBJECT), size),
        "item": np.array([f"brand {item}" for item in rows.item], OBJECT),
        "events so far": so_far(rows.user),
        "last seen": np.where(so_far(rows.user) > 0, random.gamma(1, 9, size), np.nan),
        "liking": liking,
    }
    assert {name: why for name, values in honest.items() if (why := said(rows, values))} == {}
    one_label = replace(rows, label=np.ones(size))
    assert said(one_label, random.random(size)) is None
    assert said(replace(rows, held=rows.held[:20]), rows.label) is None, "too few rows to say"


def test_one_click_in_each_list_is_no_leak_of_the_columns_beside_it():
    """Where each user clicks once for every five rows, their rows make up for each other whatever the column."""
    rows = made(rows=15_000)
    one_in_five = np.tile([1.0, 0, 0, 0, 0], 3_000)
    user, when = np.repeat(rows.user[::5], 5), np.repeat(rows.time_us[::5], 5)
    rows = replace(rows, label=one_in_five, user=user, time_us=when)
    tenure = np.random.default_rng(0).random(rows.user.max() + 1)[rows.user]
    assert said(rows, tenure, "user") is None
    assert said(rows, tenure) is None
    assert said(rows, np.random.default_rng(0).random(len(user))) is None
