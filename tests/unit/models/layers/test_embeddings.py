"""Tables, fields, event context and the history that attention reads."""

import pytest
import torch

from models.layers.embeddings import (
    RECENCY_BUCKETS,
    VALUE_CODES,
    EventContext,
    FieldEmbedding,
    ItemTable,
    RowTable,
    context_vectors,
    recency_bucket,
    value_code,
)
from models.layers.shared_history import History

SECOND_US = 1_000_000


def test_an_index_beyond_the_table_reads_the_unknown_row() -> None:
    """An item that arrived after training is unknown, never another item."""
    table = RowTable(5, 3)
    assert torch.equal(table(torch.tensor([5, 99, -1])), table(torch.tensor([0, 0, 0])))


def test_a_sparse_table_gives_gradients_of_touched_rows_alone() -> None:
    """What the touched-row optimisers need."""
    table = RowTable(100, 3)
    table.sparse = True
    table(torch.tensor([4, 7, 4])).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad.is_sparse
    assert sorted(table.weight.grad.coalesce().indices()[0].tolist()) == [4, 7]


def test_fields_do_not_share_rows() -> None:
    """Code 1 of one field and code 1 of another are two things."""
    fields = FieldEmbedding((3, 4), 5)
    tokens = fields.tokens(torch.tensor([[1, 1]]))
    assert not torch.equal(tokens[0, 0], tokens[0, 1])
    assert torch.allclose(fields.sum(torch.tensor([[2, 3]])), fields.weight[2] + fields.weight[3 + 3])


def test_a_code_outside_its_field_is_unknown_and_not_a_row_of_the_next_field() -> None:
    """The fields lie in one table, so this would otherwise be silent."""
    fields = FieldEmbedding((3, 4), 5)
    assert torch.equal(fields.sum(torch.tensor([[3, -1]])), fields.sum(torch.tensor([[0, 0]])))


def test_no_fields_sum_to_nothing() -> None:
    """A domain may have no features at all."""
    fields = FieldEmbedding((), 5)
    assert fields.sum(torch.zeros(2, 3, 0, dtype=torch.long)).shape == (2, 3, 5)
    assert fields.tokens(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0, 5)


def test_codes_of_the_wrong_number_of_fields_are_refused() -> None:
    """A shape that would broadcast must not pass."""
    with pytest.raises(ValueError, match="expected codes of 2 fields"):
        FieldEmbedding((3, 4), 5).sum(torch.zeros(6, 1, dtype=torch.long))


def test_item_codes_must_cover_the_catalogue() -> None:
    """One row of codes an item."""
    with pytest.raises(ValueError, match="item codes must have shape"):
        ItemTable(5, 3, torch.zeros(4, 2, dtype=torch.long), 2)


def test_recency_is_the_logarithm_of_the_gap() -> None:
    """Below one second, one second, a day, before the epoch's reach, and a clock that runs backwards."""
    gaps = torch.tensor([0, SECOND_US, 86_400 * SECOND_US, 2**62, -5 * SECOND_US])
    assert recency_bucket(gaps).tolist() == [0, 1, 16, RECENCY_BUCKETS - 1, 0]


def test_half_star_ratings_have_codes_of_their_own() -> None:
    """Ratings are told apart; dwell times share by doublings; signs are kept; garbage is zero."""
    ratings = value_code(torch.arange(-10, 11) / 2)
    assert len(set(ratings.tolist())) == 21
    extremes = value_code(torch.tensor([float("inf"), -float("inf"), 1e9, float("nan"), 0.0]))
    assert extremes.tolist() == [VALUE_CODES - 1, 0, VALUE_CODES - 1, VALUE_CODES // 2, VALUE_CODES // 2]


@pytest.mark.parametrize(("views", "joined"), [(1, False), (4, False), (1, True)])
def test_scores_and_pools_equal_those_of_written_out_events(views: int, joined: bool) -> None:
    """Context through codes is the same as context as vectors, for one view a chunk and for a view a row."""
    chunks, cells, length, width, queries = 3, 4, 11, 6, 2
    torch.manual_seed(0)
    context = EventContext(3, width).double()
    codes = context.codes(
        torch.randint(0, 5, (chunks, length)),
        torch.rand(chunks, length).double() * 5,
        torch.randint(0, 10**9, (chunks, length)),
        torch.randint(10**9, 10**12, (chunks, views)),
    )
    items = torch.randn(chunks, length, width, dtype=torch.float64)
    vectors = context.vectors(codes)  # [C, V, L, D]
    history = History(
        items,
        torch.ones(chunks, views, length, dtype=torch.bool),
        codes,
        context.weight,
        vectors[:, 0] if joined else None,
    )
    tokens = (items[:, None] + vectors).expand(chunks, cells, length, width)
    query = torch.randn(chunks, cells, queries, width, dtype=torch.float64)
    weight = torch.rand(chunks, cells, queries, length, dtype=torch.float64)
    torch.testing.assert_close(history.scores(query), torch.einsum("cgqd,cgld->cgql", query, tokens))
    torch.testing.assert_close(history.pool(weight), torch.einsum("cgql,cgld->cgqd", weight, tokens))


@pytest.mark.parametrize("kinds", [2, 40])
def test_action_and_value_under_one_code_give_the_same_context(kinds: int) -> None:
    """With few pairs one look-up stands for two; with more pairs than rows nothing changes."""
    torch.manual_seed(0)
    context = EventContext(3, 4).double()
    action = torch.randint(0, 3, (6, 400))
    value = torch.randint(-kinds, kinds, (6, 400)) / 2
    codes = context.codes(action, value, torch.zeros(6, 400), torch.randint(0, 10**12, (6, 2)))
    paired, table = context.paired(codes)
    assert len(paired) == (2 if kinds == 2 else 3)
    written_out = context_vectors(torch.stack(torch.broadcast_tensors(*paired), -1), table)
    torch.testing.assert_close(written_out, context.vectors(codes))
    weight = torch.randn_like(written_out)
    (found,) = torch.autograd.grad((written_out * weight).sum(), context.weight)
    (expected,) = torch.autograd.grad((context.vectors(codes) * weight).sum(), context.weight)
    torch.testing.assert_close(found, expected)


def test_sparse_fields_give_the_gradients_of_dense_ones_on_touched_rows_alone() -> None:
    """Summed or as tokens, with codes that repeat and codes outside their field."""
    torch.manual_seed(0)
    fields, codes = FieldEmbedding((500, 700), 3), torch.randint(-1, 800, (4, 5, 2))
    found = []
    for sparse in (False, True):
        fields.sparse, fields.weight.grad = sparse, None
        (fields.sum(codes).sin().sum() + fields.tokens(codes[:2]).cos().sum()).backward()
        assert fields.weight.grad is not None
        found.append(fields.weight.grad)
    dense, touched = found
    assert touched.is_sparse
    torch.testing.assert_close(touched.to_dense(), dense)
    assert set(touched.coalesce().indices()[0].tolist()) == set(fields.rows(codes).flatten().tolist())
