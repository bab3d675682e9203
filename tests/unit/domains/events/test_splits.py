"""Splits hide what they promise to hide, are the same in every process, and the scan finds planted leaks."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.errors import NotEnoughData
from domains.events.histories import HistoryStore
from domains.events.splits import cold_users, scan_for_leaks, time_forward, without_time


def rows(count=2000, users=100, seed=0):
    rng = np.random.default_rng(seed)
    user = rng.integers(1, users + 1, count)
    return user, rng.integers(1, 50, count), rng.permutation(count).astype(np.int64) * 1000, user % 5 != 0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.floats(0.1, 0.5), validation=st.floats(0.05, 0.3), timed=st.booleans())
def test_cold_users_are_hidden_from_training(seed, share, validation, timed):
    """No row of a cold or validation user is trained on, and only users with source history are drawn."""
    user, item, time_us, has_source = rows(users=400)
    split = cold_users(
        user, has_source, time_us if timed else None, share=share, validation_share=validation, seed=seed
    )
    assert not np.isin(user[split.train], split.cold_users).any()
    assert not np.isin(user[split.train], split.validation_users).any()
    assert not np.isin(split.cold_users, user[~has_source]).any()
    assert np.isin(user[split.test], split.cold_users).all()
    eligible = len(np.unique(user[has_source]))
    assert abs(len(split.cold_users) - share * eligible) < 5 * (share * (1 - share) * eligible) ** 0.5
    assert scan_for_leaks(split, user, item, time_us if timed else None) == [] or not timed
    if timed:
        assert time_us[split.test].min() >= split.cut_us > time_us[np.r_[split.train, split.validation]].max()
    else:
        assert split.cut_us is None
        waiting = len(user) - len(split.train) - len(split.validation) - len(split.test)
        assert waiting <= (~has_source).sum()


@pytest.mark.slow
def test_a_draw_does_not_depend_on_the_process():
    """The same seed gives the same users whatever PYTHONHASHSEED, and another seed gives others."""
    program = (
        "import numpy as np; from domains.events.splits import cold_users;"
        "user = np.arange(1, 200); split = cold_users(user, user > 0, None, share=.2, validation_share=.1, seed=7);"
        "print(split.cold_users.tolist(), split.validation_users.tolist())"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1", "random")
    }
    assert len(answers) == 1
    user = np.arange(1, 200)
    other = cold_users(user, user > 0, None, share=0.2, validation_share=0.1, seed=8)
    assert str(other.cold_users.tolist()) not in answers.pop().decode()


@settings(max_examples=100, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31), share=st.floats(0.1, 0.5), timed=st.booleans())
def test_growing_data_never_moves_a_user_between_cold_and_warm(data, seed, share, timed):
    """New users, new rows and source histories that arrive late leave everybody where they were, at every step."""
    user, _, time_us, has_source = rows(count=3000, users=400, seed=seed % 1000)
    order = np.argsort(time_us)
    draw = {"share": share, "validation_share": 0.15, "seed": seed}
    trained, judged = set(), set()
    for count in sorted(data.draw(st.lists(st.integers(1500, 3000), min_size=2, max_size=4))):
        chosen = order[:count]
        known = has_source[chosen] & (user[chosen] <= data.draw(st.integers(200, 400)))
        split = cold_users(user[chosen], known, time_us[chosen] if timed else None, **draw)
        trained |= set(user[chosen][split.train].tolist())
        judged |= set(split.cold_users.tolist())
        assert not trained & judged


def test_time_forward_keeps_rows_of_one_time_together():
    """Rows of one time are never on both sides of a cut."""
    time_us = np.repeat(np.arange(20), 50)
    split = time_forward(time_us, validation_share=0.1, test_share=0.2)
    assert time_us[split.train].max() < time_us[split.validation].min()
    assert time_us[split.validation].max() < split.cut_us == time_us[split.test].min()
    assert len(split.test) == 200
    assert len(split.validation) == 100


def test_a_split_without_rows_is_refused():
    """One time for all rows leaves nothing to learn from; nobody with source history leaves nobody cold."""
    with pytest.raises(NotEnoughData, match="train"):
        time_forward(np.ones(10), validation_share=0.1, test_share=0.2)
    with pytest.raises(NotEnoughData, match="validation"):
        cold_users(np.arange(1, 9), np.zeros(8, bool), None, share=0.2, validation_share=0.1, seed=0)


def clean():
    user, item, time_us, has_source = rows()
    split = cold_users(user, has_source, time_us, share=0.3, validation_share=0.2, seed=0)
    return split, user, item, time_us


def test_a_clean_split_has_no_leaks():
    """Honest rows raise no alarm."""
    split, user, item, time_us = clean()
    assert scan_for_leaks(split, user, item, time_us, now_us=10**9) == []


def test_planted_leaks_are_named():
    """Each way to leak is found: shared rows, cold users trained on, rows past the cut."""
    split, user, item, time_us = clean()

    def found(split=split, **more):
        return " | ".join(scan_for_leaks(split, user, item, time_us, **more))

    assert "both train and test" in found(replace(split, train=np.r_[split.train, split.test[:3]]))
    cold_row = np.flatnonzero(np.isin(user, split.cold_users) & (time_us < split.cut_us))[:1]
    assert "1 cold users have rows in train" in found(replace(split, train=np.r_[split.train, cold_row]))
    warm_late = np.flatnonzero(~np.isin(user, split.cold_users) & (time_us >= split.cut_us))[:2]
    assert "2 rows of train are at or after the cut" in found(replace(split, train=np.r_[split.train, warm_late]))
    assert "lie in the future" in found(now_us=int(time_us.max()) - 1)


def test_the_same_event_twice_is_named():
    """A copy of a test event under another row number is found by its user, item and time."""
    split, user, item, time_us = clean()
    user, item, time_us = (np.append(column, column[split.test[0]]) for column in (user, item, time_us))
    leaked = replace(split, train=np.append(split.train, len(user) - 1))
    assert any(
        "events of the same user, item and time" in sentence for sentence in scan_for_leaks(leaked, user, item, time_us)
    )


def test_a_history_that_holds_the_future_is_named(tmp_path):
    """A planted future row: the windows of the rows are looked at event by event."""
    split, user, item, time_us = clean()
    nothing = np.zeros(len(user))
    store = HistoryStore.build(
        tmp_path / "store", user=user, domain_number=1, item=item, action=nothing, value=nothing, time_us=time_us
    )
    start, stop = store.window(user, time_us, 10)
    assert scan_for_leaks(split, user, item, time_us, histories={"source": (store, start, stop)}) == []
    # One event further than strictly before: the row's own.
    assert (
        "2000 of 2000 windows"
        in scan_for_leaks(split, user, item, time_us, histories={"source": (store, start, stop + 1)})[0]
    )


def test_rows_without_time_keep_their_side_when_others_arrive():
    """Each is drawn by who did what, not by where it stands."""
    user, item, *_ = rows()
    split = without_time(user, item, validation_share=0.05, test_share=0.1, seed=3)
    held = {(user[row], item[row]) for row in split.test}
    assert 0.05 < len(split.test) / len(user) < 0.15
    more, other = np.r_[np.arange(1, 900), user], np.r_[np.arange(1, 900) % 7, item]
    again = without_time(more, other, validation_share=0.05, test_share=0.1, seed=3)
    assert not held & {(more[row], other[row]) for row in np.r_[again.train, again.validation]}
