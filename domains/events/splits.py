"""Which rows a model is trained on, which choose its settings, and which it is tested on.

Two splits: by time and by cold users. Each depends only on its arguments and the seed: a user is hidden or not by a
hash of their own index against a threshold, so the draw is the same in every process, and neither users who join later
nor rows that arrive later ever move anybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from domains.errors import NotEnoughData
from domains.events.histories import HistoryStore, LeakedFuture, splitmix64
from domains.spec import DomainSpec

SPLIT_SEED = 20_260_101
"""One seed for every split of a domain: a user who is held out once is held out from every later version."""
VALIDATION_SHARE = 0.1
"""Share of a target's users, beside the cold ones, that is held out for choosing settings."""
CUT_SHARE = 0.2
"""Share of a domain's rows, the latest, on which cold users are tested."""


@dataclass(frozen=True)
class Split:
    """Row numbers of each part, ascending int64; a row may be in none.

    ``cold_users`` are the test users hidden from training, ``validation_users`` those hidden for choosing settings.
    No row of ``train`` or ``validation`` is at or after ``cut_us``, and every test row is; None where time has no part.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    cold_users: np.ndarray
    cut_us: int | None
    validation_users: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


def time_forward(time_us: np.ndarray, *, validation_share: float, test_share: float) -> Split:
    """Train on the past, test on the future: ``time_us`` (N,) int64, shares of rows in (0, 1).

    Rows of one time stay together, so a part may be a little smaller or larger than its share.

    Raises:
        NotEnoughData: a part would be empty, such as when all rows have one time.
    """
    _check_shares(validation_share, test_share)
    time_us = np.asarray(time_us, np.int64)
    cut = _cut(time_us, test_share)
    earlier = time_us[time_us < cut]
    begin = _cut(earlier, validation_share / (1 - test_share)) if len(earlier) else cut
    parts = (time_us < begin, (time_us >= begin) & (time_us < cut), time_us >= cut)
    train, validation, test = (np.flatnonzero(part) for part in parts)
    none = np.zeros(0, np.int64)
    why = "all rows have one time" if np.ptp(time_us) == 0 else "too many rows have one time"
    return _filled(Split(train, validation, test, none, int(cut)), train=why, validation=why, test=why)


def without_time(user: np.ndarray, item: np.ndarray, *, validation_share: float, test_share: float, seed: int) -> Split:
    """Rows of a source that knows no time, drawn by who did what, so that rows that are added move no others.

    Raises:
        NotEnoughData: a part would be empty.
    """
    _check_shares(validation_share, test_share)
    who = splitmix64(np.asarray(user, np.uint64)) ^ np.asarray(item, np.uint64)
    place = splitmix64(_drawn(who, seed)) / 2.0**64
    held = validation_share + test_share
    parts = (place >= held, place < validation_share, (place >= validation_share) & (place < held))
    train, validation, test = (np.flatnonzero(part) for part in parts)
    why = "there are too few rows"
    none = np.zeros(0, np.int64)
    return _filled(Split(train, validation, test, none, None), train=why, validation=why, test=why)


def cold_users(
    user: np.ndarray,
    has_source_history: np.ndarray,
    time_us: np.ndarray | None,
    *,
    share: float,
    validation_share: float,
    seed: int,
) -> Split:
    """Test on users of whom training saw source history and nothing of the target domain.

    Shapes:
        user:               (N,) int, the user of each target row
        has_source_history: (N,) bool, whether that user has any
        time_us:            (N,) int64 or None

    ``share`` of all users are hidden, in expectation: none of their rows is trained on. Those of them with source
    history are the cold users; the others wait, so that a source history that arrives later finds them unmet.
    ``validation_share`` of the rest are hidden likewise, for choosing settings. With time, only rows in
    the last ``CUT_SHARE`` of all rows are tested, and all training and validation rows lie before. Without time, or
    with one time for all rows, there is no cut.

    Raises:
        NotEnoughData: a part would be empty.
    """
    _check_shares(share, validation_share)
    user = np.asarray(user, np.int64)
    everybody = np.unique(user[user > 0])
    is_hidden, is_kept = held_out(everybody, share=share, validation_share=validation_share, seed=seed)
    has_history = np.isin(everybody, user[np.asarray(has_source_history, bool)])
    cold, held = everybody[is_hidden & has_history], everybody[is_kept & has_history]
    never_trained = everybody[is_hidden | is_kept]
    cut: int | None = None
    before = after = np.ones(len(user), bool)
    if time_us is not None and len(user) and np.ptp(time_us) > 0:
        time_us = np.asarray(time_us, np.int64)
        cut = _cut(time_us, CUT_SHARE)
        if cut == time_us.min():  # most rows have the first time of all: what comes after it is later
            cut = int(time_us[time_us > cut].min())
        after = np.asarray(time_us) >= cut
        before = ~after
    train = np.flatnonzero(~np.isin(user, never_trained) & before)
    validation, test = np.flatnonzero(np.isin(user, held) & before), np.flatnonzero(np.isin(user, cold) & after)
    earlier, later = (
        ("", "") if cut is None else (" before the last fifth of the time", " in the last fifth of the time")
    )
    return _filled(
        Split(train, validation, test, cold, cut, held),
        train=f"no user who is not held out has one{earlier}",
        validation=f"none of the {len(held)} users with source history who are held out to choose by has one{earlier}",
        test=f"none of the {len(cold)} cold users, who have source history, has one{later}",
    )


def held_out(user: np.ndarray, *, share: float, validation_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which users, (U,), such a draw hides for the test, and which for choosing settings; (U,) bool each."""
    place = _drawn(user, seed) / 2.0**64
    is_hidden = place < share
    return is_hidden, ~is_hidden & (place < share + (1 - share) * validation_share)


def launch_split(
    spec: DomainSpec,
    *,
    user: np.ndarray,
    time_us: np.ndarray,
    has_source_history: np.ndarray,
    share: float | None = None,
    seed: int = SPLIT_SEED,
) -> Split:
    """The split of a target that its launch uses and its readiness rehearses; arguments as of ``cold_users``.

    Args:
        share: overrides the gate's share of cold users.

    Raises:
        NotEnoughData: a part would be empty.
    """
    return cold_users(
        user,
        has_source_history,
        time_us if spec.interactions.time is not None else None,
        share=share or spec.gate.cold_share,
        validation_share=VALIDATION_SHARE,
        seed=seed,
    )


def scan_for_leaks(
    split: Split,
    user: np.ndarray,
    item: np.ndarray,
    time_us: np.ndarray | None = None,
    *,
    now_us: int | None = None,
    histories: Mapping[str, tuple[HistoryStore, np.ndarray, np.ndarray]] | None = None,
    new_items: np.ndarray | None = None,
) -> list[str]:
    """Look for ways in which a test row could be known in training. Returns a sentence for each; empty is clean.

    Shapes:
        user, item, time_us: (N,) over all rows that the split numbers
        histories: name -> (store, start, stop), the windows that the rows read, each (N,); needs ``time_us``
        new_items: items of which it is said that training never saw them
    """
    user, item = np.asarray(user), np.asarray(item)
    found = [*_row_leaks(split, user, item, time_us)]
    for name, part in (("train", split.train), ("validation", split.validation)):
        crossing = np.intersect1d(item[part], [] if new_items is None else new_items)
        if len(crossing):
            found.append(f"{len(crossing)} items that are called new have rows in {name}")
    if time_us is not None:
        found += _time_leaks(split, np.asarray(time_us), now_us)
        for name, (store, start, stop) in (histories or {}).items():
            try:
                store.check_windows(start, stop, time_us)
            except LeakedFuture as leak:
                found.append(f"history {name!r}: {leak}")
    return found


def _row_leaks(split: Split, user: np.ndarray, item: np.ndarray, time_us: np.ndarray | None) -> list[str]:
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    found = []
    at = np.zeros(len(user), np.int64) if time_us is None else np.asarray(time_us)
    same = np.unique(np.stack([user, item, at], axis=1), axis=0, return_inverse=True)[1].ravel()
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = np.intersect1d(parts[first], parts[second])
        if len(shared):
            found.append(f"{len(shared)} rows are in both {first} and {second}")
        events = np.intersect1d(same[parts[first]], same[parts[second]])
        if len(events) > len(np.unique(same[shared])):
            what = "user and item" if time_us is None else "user, item and time"
            found.append(f"{len(events)} events of the same {what} are in both {first} and {second}")
    for users, name, hidden in (
        (split.cold_users, "cold", ("train", "validation")),
        (split.validation_users, "validation", ("train", "test")),
    ):
        for part in hidden:
            crossing = np.intersect1d(user[parts[part]], users)
            if len(crossing):
                found.append(f"{len(crossing)} {name} users have rows in {part}")
    return found


def _time_leaks(split: Split, time_us: np.ndarray, now_us: int | None) -> list[str]:
    found = []
    if split.cut_us is not None:
        for name, rows in (("train", split.train), ("validation", split.validation)):
            late = int((time_us[rows] >= split.cut_us).sum())
            if late:
                found.append(f"{late} rows of {name} are at or after the cut")
        early = int((time_us[split.test] < split.cut_us).sum())
        if early:
            found.append(f"{early} rows of test are before the cut")
    if now_us is not None and (time_us > now_us).any():
        found.append(f"{int((time_us > now_us).sum())} rows lie in the future")
    return found


def _cut(time_us: np.ndarray, share: float) -> int:
    """The time from which on about ``share`` of the rows lie."""
    if not len(time_us):
        return 0
    place = min(len(time_us) - 1, round((1 - share) * len(time_us)))
    return int(np.partition(time_us, place)[place])


def _drawn(numbers: np.ndarray, seed: int) -> np.ndarray:
    """A draw for each number that depends on it and the seed alone, (N,) uint64."""
    return splitmix64(splitmix64(np.asarray(numbers, np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)))


def _check_shares(*shares: float) -> None:
    if not all(0 < share < 1 for share in shares) or sum(shares) >= 1:
        raise ValueError(f"shares must lie between 0 and 1 and leave rows to train on, not {shares}")


def _filled(split: Split, **why: str) -> Split:
    for name, rows in (("train", split.train), ("validation", split.validation), ("test", split.test)):
        if not len(rows):
            raise NotEnoughData(f"the split leaves no rows for {name}: {why[name]}", part=name)
    return split
