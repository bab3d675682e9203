"""Laying rows out in chunks that share a stored history."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.batch import Batch, Events, arrange

MakeBatch = Callable[..., Batch]


def batch_of(users: list[int], domains: list[int]) -> Batch:
    """Rows of the given users and domains, every other tensor telling the row's number."""
    rows = len(users)
    number = torch.arange(rows)
    stored = max(users, default=0) + 1
    events = Events(
        item=torch.arange(stored)[:, None].expand(stored, 6).contiguous(),
        action=torch.zeros(stored, 6, dtype=torch.long),
        value=torch.zeros(stored, 6),
        time=torch.arange(6).expand(stored, 6).contiguous(),
        row=torch.tensor(users, dtype=torch.long),
        start=number % 3,
        stop=2 + number % 4,
    )
    return Batch(
        domain=torch.tensor(domains, dtype=torch.long),
        user=number,
        item=number,
        item_features=number[:, None],
        user_features=number[:, None],
        context=number[:, None],
        time=number,
        label=number.float(),
        weight=number.float(),
        offset=number.float(),
        lifelong=events,
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), min_size=1, max_size=60))
@pytest.mark.slow
def test_every_row_has_its_cell_and_every_cell_its_history(rows: list[tuple[int, int]]) -> None:
    """Any users and domains in any order: answers come back in place, and chunks share history and domain."""
    batch = batch_of([user for user, _ in rows], [domain for _, domain in rows])
    cells, layout = arrange(batch)
    count = layout.chunks * layout.per_chunk
    assert len(cells) == count
    assert torch.equal(layout.back(cells.item), batch.item)
    assert torch.equal(layout.back(cells.label), batch.label)
    chunk = torch.arange(count) // layout.per_chunk
    assert torch.equal(cells.lifelong.row, chunk)
    assert torch.equal(cells.domain, cells.domain[:: layout.per_chunk][chunk])
    # What a cell sees of its chunk's history is what its row sees of the user's.
    for cell, row in enumerate(cells.item.tolist()):
        seen = cells.lifelong.item[chunk[cell]][cells.lifelong.mask()[cell]]
        original = batch.lifelong.item[batch.lifelong.row[row]][batch.lifelong.mask()[row]]
        assert torch.equal(seen, original)
        times = cells.lifelong.time[chunk[cell]][cells.lifelong.mask()[cell]]
        assert torch.equal(times, batch.lifelong.time[batch.lifelong.row[row]][batch.lifelong.mask()[row]])
    groups = len(set(rows))
    assert layout.chunks <= 2 * groups
    assert count <= 2 * (len(rows) + groups)


def test_rows_with_histories_of_their_own_stay_where_they_are() -> None:
    """Nothing is moved where nothing is shared."""
    cells, layout = arrange(batch_of([3, 1, 2, 0], [0, 0, 0, 0]))
    assert (layout.chunks, layout.per_chunk, layout.row_of_cell) == (4, 1, None)
    assert torch.equal(cells.item, torch.arange(4))


def test_columns_that_nobody_sees_are_cut() -> None:
    """A batch pays for its longest visible history, not for the stored one."""
    batch = batch_of([0, 0, 1], [0, 0, 0])
    cells, _ = arrange(batch)
    assert cells.lifelong.item.shape[1] == 4  # of 6: the last row sees up to 4


def test_one_user_with_many_candidates_is_one_chunk() -> None:
    """A rank request: the history is read once."""
    _, layout = arrange(batch_of([0] * 200, [1] * 200))
    assert (layout.chunks, layout.per_chunk) == (1, 200)


def test_short_histories_of_another_row_keep_rows_apart(make_batch: MakeBatch) -> None:
    """Rows share a chunk only if they share every stored history."""
    batch = make_batch(10, users=1, domain=2)
    assert arrange(batch)[1].chunks == 10  # each row has a short target history of its own


@pytest.mark.parametrize("index", [torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_chosen_rows_keep_what_they_see(index: torch.Tensor) -> None:
    """By number or by mask; stored histories stay shared."""
    batch = batch_of([0, 1, 1], [0, 1, 0])
    chosen = batch.rows(index)
    assert torch.equal(chosen.item, batch.item[index])
    assert torch.equal(chosen.lifelong.mask(), batch.lifelong.mask()[index])
    assert chosen.lifelong.item is batch.lifelong.item
