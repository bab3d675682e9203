"""The history store against a naive loop, and the promise that no row sees its own time or a later one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.events import histories
from domains.events.histories import COLUMNS, HistoryStore, LeakedFuture, action_code

EVENT = st.tuples(
    st.integers(1, 6),  # user
    st.integers(1, 3),  # domain
    st.integers(1, 9),  # item
    st.integers(0, 3),  # action
    st.sampled_from([0.0, 1.0, 3.5]),
    st.integers(0, 8),  # time: few moments, so ties are common
)


def built(path, events):
    user, domain, item, action, value, time = (np.array(column) for column in zip(*events, strict=True))
    return HistoryStore.build(
        path, user=user, domain_number=domain, item=item, action=action, value=value, time_us=time
    )


def contents(store, start, stop):
    return [tuple(getattr(store, name)[at].item() for name in COLUMNS) for at in range(start, stop)]


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(EVENT, min_size=1, max_size=60),
    asked=st.lists(st.tuples(st.integers(-2, 9), st.integers(-1, 10)), min_size=1, max_size=20),
    length=st.integers(1, 5),
)
@pytest.mark.slow
def test_a_window_is_what_a_naive_loop_finds(tmp_path_factory, events, asked, length):
    """Any events, any order in: the window holds exactly the user's latest events strictly before the time."""
    store = built(tmp_path_factory.mktemp("histories") / "store", events)
    users, moments = (np.array(column) for column in zip(*asked, strict=True))
    start, stop = store.window(users, moments, length)
    for user, moment, first, last in zip(users, moments, start, stop, strict=True):
        times = sorted(event[5] for event in events if event[0] == user and event[5] < moment)
        seen = contents(store, first, last)
        assert [row[4] for row in seen] == times[-length:]
        legal = [(item, domain, action, value, time) for u, domain, item, action, value, time in events if u == user]
        assert all(row in legal for row in seen)
        view = store.history(int(user), int(moment), length)
        assert list(view.time_us) == times[-length:]
    store.check_windows(start, stop, moments)


@settings(max_examples=40, deadline=None)
@given(events=st.lists(EVENT, min_size=1, max_size=40), data=st.data())
def test_the_order_of_arrival_is_forgotten(tmp_path_factory, events, data):
    """The same events in any order, ties in time included, give the same arrays."""
    folder = tmp_path_factory.mktemp("histories")
    one = built(folder / "one", events)
    other = built(folder / "other", data.draw(st.permutations(events)))
    for name in (*COLUMNS, "offsets"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@settings(max_examples=30, deadline=None)
@given(events=st.lists(EVENT, min_size=1, max_size=60), piece=st.integers(1, 7), at_once=st.integers(1, 9))
@pytest.mark.slow
def test_building_in_pieces_gives_the_same_store(tmp_path_factory, events, piece, at_once):
    """However small the batches and the sorted pieces, the store is the one that a single sort gives."""
    folder = tmp_path_factory.mktemp("histories")
    whole = built(folder / "whole", events)
    names = ("user", "domain", "item", "action", "value", "time_us")
    columns = {name: np.array(column) for name, column in zip(names, zip(*events, strict=True), strict=True)}

    def batches():
        for begin in range(0, len(events), piece):
            yield {name: column[begin : begin + piece] for name, column in columns.items()}

    before = histories.SORTED_AT_ONCE
    histories.SORTED_AT_ONCE = at_once
    try:
        pieces = HistoryStore.build_from_batches(folder / "pieces", batches)
    finally:
        histories.SORTED_AT_ONCE = before
    for name in (*COLUMNS, "offsets"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name))


def test_ties_in_time_do_not_leak(tmp_path):
    """An event at the row's own time is invisible, however many events share it."""
    store = HistoryStore.build(
        tmp_path / "store",
        user=np.ones(5, int),
        domain_number=1,
        item=np.arange(5),
        action=np.zeros(5),
        value=np.ones(5),
        time_us=np.array([1, 7, 7, 7, 9]),
    )
    assert store.window(np.array([1]), np.array([7]), 10) == (0, 1)
    assert store.window(np.array([1]), np.array([8]), 10) == (0, 4)


def test_a_history_is_a_view(tmp_path):
    """Reading a history copies nothing: it shares memory with the mapped file."""
    store = built(tmp_path / "store", [(1, 1, item, 0, 1.0, item) for item in range(1, 9)])
    history = store.history(1, 6, 3)
    assert list(history.item) == [3, 4, 5]
    for name in COLUMNS:
        assert np.shares_memory(getattr(history, name), getattr(store, name))
        assert not getattr(history, name).flags.owndata
    assert HistoryStore.open(tmp_path / "store").history(1, 6, 3).item.tolist() == [3, 4, 5]


def test_an_empty_store_answers_with_empty_windows(tmp_path):
    """No events at all is a legal state: a domain whose users never did anything."""
    store = HistoryStore.build(tmp_path / "store", user=[], domain_number=1, item=[], action=[], value=[], time_us=[])
    start, stop = store.window(np.array([0, 5]), np.array([9, 9]), 3)
    assert (start == stop).all()
    assert len(store.history(5, 9, 3)) == 0


def test_a_planted_future_event_is_caught(tmp_path):
    """Someone writes a later time into a stored file: the check of the windows names the row."""
    store = built(tmp_path / "store", [(1, 1, item, 0, 1.0, item) for item in range(1, 9)])
    start, stop = store.window(np.array([1, 1]), np.array([3, 6]), 10)
    times = np.load(tmp_path / "store" / "time_us.npy", mmap_mode="r+")
    times[3] = 99
    times.flush()
    planted = HistoryStore.open(tmp_path / "store")
    with pytest.raises(LeakedFuture, match="the first is row 1"):
        planted.check_windows(start, stop, np.array([3, 6]))


def test_a_window_that_reaches_its_own_time_is_caught(tmp_path):
    """A loop that forgets the strict comparison is caught by looking at the events themselves."""
    store = built(tmp_path / "store", [(1, 1, item, 0, 1.0, item) for item in range(1, 9)])
    start, stop = store.window(np.array([1]), np.array([6]), 4)
    store.check_windows(start, stop, 6)
    with pytest.raises(LeakedFuture):
        store.check_windows(start, stop + 1, 6)


def test_a_store_is_never_overwritten(tmp_path):
    """Published histories are immutable: building onto one is refused."""
    built(tmp_path / "store", [(1, 1, 1, 0, 1.0, 1)])
    with pytest.raises(FileExistsError):
        built(tmp_path / "store", [(1, 1, 2, 0, 1.0, 1)])


def test_an_event_of_nobody_is_refused(tmp_path):
    """Index 0 means unknown, so no history belongs to it."""
    with pytest.raises(ValueError, match="known user"):
        built(tmp_path / "store", [(0, 1, 1, 0, 1.0, 1)])


def test_opening_reads_no_events(tmp_path):
    """Open is O(1): it maps files to be read, whatever their size."""
    built(tmp_path / "store", [(1, 1, 1, 0, 1.0, 1)])
    store = HistoryStore.open(tmp_path / "store")
    mapped = [getattr(store, name) for name in (*COLUMNS, "offsets")]
    assert all(isinstance(array.base, np.memmap) and not array.flags.writeable for array in mapped)


@pytest.mark.parametrize(
    ("name", "code"), [("click", 2), ("PV", 1), (" Buy ", 7), ("purchase", 7), ("", 0), (None, 0), ("dance", 0)]
)
def test_actions_have_fixed_codes(name, code):
    """Codes are stored and learnt, so they must never move; synonyms share one, strangers are unknown."""
    assert action_code(name) == code
