"""A row meets exactly what was known at its moment, whoever builds the batch and whatever shares it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.events.histories import HistoryStore
from orchestrator.data.batches import BatchBuilder, DomainBatchSampler, EventSource, Examples, OneUser
from orchestrator.data.encoding import FeatureEncoder, SourceRange

LAYOUT = FeatureEncoder(
    task="ctr",
    item_fields=(),
    user_fields=(),
    context_fields=(),
    domain_fields=(),
    sources=(SourceRange("video", 1, 0, 40), SourceRange("shop", 2, 39, 40)),
    slots=("video", "shop"),
    lifelong=6,
    short=3,
)
USERS, EVENTS = 5, 120


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    random = np.random.default_rng(7)
    return HistoryStore.build(
        tmp_path_factory.mktemp("store") / "source",
        user=random.integers(1, USERS, EVENTS),
        domain_number=random.integers(1, 3, EVENTS),
        item=random.integers(1, 40, EVENTS),
        action=random.integers(0, 3, EVENTS),
        value=random.random(EVENTS).astype(np.float32),
        time_us=random.integers(0, 50, EVENTS),
    )


def rows_of(user, time_us, domain="live", number=3) -> Examples:
    size = len(user)
    return Examples(
        domain=domain,
        number=number,
        user=np.asarray(user, np.int64),
        item=np.arange(1, size + 1),
        time_us=np.asarray(time_us, np.int64),
        label=np.ones(size, np.float32),
        value=np.ones(size, np.float32),
        context=np.zeros((size, 0), np.int64),
        weight=np.ones(size, np.float32),
        offset=np.zeros(size, np.float32),
    )


def a_batch_builder(source, **changes) -> BatchBuilder:
    return BatchBuilder(
        LAYOUT,
        user_codes=np.zeros((USERS, 0), np.int64),
        item_codes={"live": np.zeros((300, 0), np.int64), "video": np.zeros((40, 0), np.int64)},
        source=source,
        target={},
        **changes,
    )


def seen(events, row: int) -> list[tuple[int, float, int]]:
    """What one row sees, as (item row, value, time), oldest first."""
    at = slice(int(events.start[row]), int(events.stop[row]))
    stored = int(events.row[row])
    return [
        (int(item), round(float(value), 5), int(time_us))
        for item, value, time_us in zip(
            events.item[stored, at], events.value[stored, at], events.time[stored, at], strict=True
        )
    ]


def naive(store, user: int, before_us: int, most: int, numbers=(1, 2)) -> list[tuple[int, float, int]]:
    """The same by a loop over the user's own events."""
    start, stop = store.ranges(np.array([user]))
    found = []
    for at in range(int(start[0]), int(stop[0])):
        if store.time_us[at] < before_us and store.domain[at] in numbers:
            offset = {1: 0, 2: 39}[int(store.domain[at])]
            found.append((offset + int(store.item[at]), round(float(store.value[at]), 5), int(store.time_us[at])))
    return found[-most:]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, USERS + 1), st.integers(-2, 60)), min_size=1, max_size=30))
def test_every_row_sees_the_last_events_before_its_own_time_and_no_others(store, rows):
    """However rows are grouped on stored histories, each sees what a plain loop finds."""
    user, time_us = zip(*rows, strict=True)
    batch = a_batch_builder(EventSource(store)).batch(rows_of(user, time_us), 0)
    for row, (who, when) in enumerate(rows):
        assert seen(batch.lifelong, row) == naive(store, who, when, LAYOUT.lifelong)
        assert seen(batch.short_source, row) == naive(store, who, when, LAYOUT.short)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, USERS - 1), st.integers(0, 60)), min_size=1, max_size=20))
def test_a_domain_sees_only_the_sources_that_it_borrows_from(store, rows):
    """Events of other sources do not even take a place in the last N."""
    user, time_us = zip(*rows, strict=True)
    batch_builder = a_batch_builder(EventSource(store), source_domains={"live": frozenset({2})})
    batch = batch_builder.batch(rows_of(user, time_us), 0)
    for row, (who, when) in enumerate(rows):
        assert seen(batch.lifelong, row) == naive(store, who, when, LAYOUT.lifelong, numbers=(2,))


@pytest.mark.parametrize("chosen", [None, {"live": frozenset({1})}])
def test_a_user_read_online_gives_the_batch_that_training_would_build(store, chosen):
    """The same rows from the store and from one user's arrays are equal tensors."""
    user, now = 2, 40
    start, stop = store.window(np.array([user]), np.array([10**9]), 2000)
    at = slice(int(start[0]), int(stop[0]))
    arrays = {name: np.asarray(getattr(store, name)[at]) for name in ("item", "domain", "action", "value", "time_us")}
    rows = rows_of([user] * 4, [now] * 4)
    trained = a_batch_builder(EventSource(store), source_domains=chosen).batch(rows, 0)
    served = a_batch_builder(OneUser(arrays), source_domains=chosen).batch(rows, 0)
    for row in range(4):
        assert seen(trained.lifelong, row) == seen(served.lifelong, row)
        assert len(seen(served.lifelong, row)) > 0


def test_rows_of_one_user_and_moment_share_one_stored_history(store):
    """A request with 200 candidates stores one history, not 200."""
    batch = a_batch_builder(EventSource(store)).batch(rows_of([1] * 200, [45] * 200), 0)
    assert batch.lifelong.item.shape[0] == 1


def test_an_epoch_holds_every_row_once_and_any_step_can_be_resumed(store):
    """The same seed gives the same batches, another epoch another order, and a late start the same tail."""
    random = np.random.default_rng(1)
    parts = [
        (rows_of(random.integers(1, USERS, 90), random.integers(0, 60, 90)), 0),
        (rows_of(random.integers(1, USERS, 35), random.integers(0, 60, 35), "video", 1), 1),
    ]
    epoch = DomainBatchSampler(a_batch_builder(EventSource(store)), parts, batch_size=16, seed=3)
    batches = list(epoch.batches(0))
    assert len(batches) == len(epoch)
    assert all(len(torch.unique(batch.domain)) == 1 for batch in batches)
    for slot, (rows, _) in enumerate(parts):
        items = torch.cat([batch.item for batch in batches if int(batch.domain[0]) == slot])
        assert len(items) == len(rows)
    tail = list(epoch.batches(0, start=4))
    assert all(torch.equal(a.item, b.item) for a, b in zip(batches[4:], tail, strict=True))
    other = torch.cat([batch.time for batch in epoch.batches(1)])
    assert not torch.equal(other, torch.cat([batch.time for batch in batches]))
