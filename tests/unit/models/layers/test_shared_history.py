"""Stored vectors that many queries read and whose gradient is written once."""

import pytest
import torch
from torch import Tensor

from models.layers.embeddings import FieldEmbedding, ItemTable
from models.layers.shared_history import History, Reading, read, stored_items

CHUNKS, CELLS, LENGTH, WIDTH, ITEMS = 3, 2, 7, 5, 12


class Case:
    """A catalogue, stored events of it, and queries and weights to read them with."""

    def __init__(self, *, fields: tuple[int, ...] = (3, 4), sparse: bool = False) -> None:
        torch.manual_seed(5)
        codes = torch.stack([torch.randint(0, size, (ITEMS,)) for size in fields] or [torch.zeros(ITEMS)], 1).long()
        self.items = ItemTable(ITEMS, WIDTH, codes[:, : len(fields)], len(fields)).double()
        self.items.rows.sparse = sparse
        self.fields = FieldEmbedding(fields, WIDTH).double()
        self.fields.sparse = sparse
        self.events = torch.randint(0, ITEMS + 2, (CHUNKS, LENGTH))  # two ids are beyond the catalogue
        self.others = torch.randint(0, ITEMS, (6,))
        self.query = torch.randn(CHUNKS, CELLS, 2, WIDTH, dtype=torch.float64, requires_grad=True)
        self.place = torch.randint(0, CHUNKS * LENGTH, (9,))

    def plain(self) -> tuple[Tensor, Tensor]:
        index = torch.where(self.events < ITEMS, self.events, 0)
        stored = self.items.rows.weight[index] + self.fields.sum(self.items.codes[index])
        return stored, self.items.rows.weight[self.others]

    def answer(self, *, noted: bool) -> Tensor:
        """Scores, pools of a softmax of them, and single rows, all of the same stored vectors."""
        mask = torch.ones(CHUNKS, 1, LENGTH, dtype=torch.bool)
        if noted:
            stored, rest, reads = stored_items(self.items, self.fields, self.events, self.others)
        else:
            (stored, rest), reads = self.plain(), None  # type: ignore[assignment]
        history = History(stored, mask, (), torch.zeros(1, WIDTH), None, reads)
        scores = history.item_scores(self.query)
        pooled = history.item_pool(scores.softmax(-1))
        again = history.item_scores(pooled)
        single = history.items_at(self.place)
        return again.square().sum() + scores.sin().sum() + single.square().sum() + rest.cos().sum() + pooled.sum()

    def gradients(self) -> list[Tensor]:
        leaves = [self.items.rows.weight, self.fields.weight, self.query]
        grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.to_dense() for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        return grads


@pytest.mark.parametrize("fields", [(), (3,), (3, 4)])
@pytest.mark.parametrize("sparse", [False, True])
def test_noted_reads_have_the_gradients_of_plain_ones(fields: tuple[int, ...], sparse: bool) -> None:
    """Scores, pools and rows, one feeding another, for the table, the fields and the queries."""
    case = Case(fields=fields, sparse=sparse)
    noted, plain = case.answer(noted=True), case.answer(noted=False)
    torch.testing.assert_close(noted, plain)
    noted.backward()
    of_noted = case.gradients()
    plain.backward()
    for mine, expected in zip(of_noted, case.gradients(), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-12, rtol=1e-10)
    assert of_noted[0].abs().sum() > 0


def test_a_second_backward_pass_counts_nothing_twice() -> None:
    """A kept graph gives the same gradients again, also after a pass that stopped before the stored vectors."""
    case = Case()
    answer = case.answer(noted=True)
    torch.autograd.grad(answer, case.query, retain_graph=True)
    answer.backward(retain_graph=True)
    first = case.gradients()
    answer.backward()
    for again, before in zip(case.gradients(), first, strict=True):
        torch.testing.assert_close(again, before)


def test_a_frozen_catalogue_still_passes_gradients_to_queries() -> None:
    """Fine-tuning: the stored vectors want none, the queries do."""
    case = Case()
    case.items.requires_grad_(False)
    case.fields.requires_grad_(False)
    case.answer(noted=True).backward()
    of_query = case.gradients()[2]
    case.answer(noted=False).backward()
    torch.testing.assert_close(of_query, case.gradients()[2])
    assert case.items.rows.weight.grad is None


def test_a_batch_that_asks_for_no_other_items_has_gradients_too() -> None:
    """All candidates in tables of their own, no short history: the source table is read by the history alone."""
    case = Case()
    stored, _, reads = stored_items(case.items, case.fields, case.events, torch.zeros(0, dtype=torch.long))
    mask = torch.ones(CHUNKS, 1, LENGTH, dtype=torch.bool)
    History(stored, mask, (), torch.zeros(1, WIDTH), None, reads).item_scores(case.query).sum().backward()
    of_noted = case.gradients()
    History(case.plain()[0], mask, (), torch.zeros(1, WIDTH)).item_scores(case.query).sum().backward()
    for mine, expected in zip(of_noted, case.gradients(), strict=True):
        torch.testing.assert_close(mine, expected)


def test_half_precision_keeps_full_precision_gradients() -> None:
    """Under autocast the history is cast once; the table's gradient comes back in its own type, near the exact one."""
    case = Case()
    case.items.float()
    case.fields.float()
    case.query = case.query.detach().float().requires_grad_()
    case.answer(noted=True).backward()
    exact = case.gradients()
    with torch.autocast("cpu", torch.bfloat16):
        answer = case.answer(noted=True)
    answer.backward()
    for rough, full in zip(case.gradients(), exact, strict=True):
        assert rough.dtype == torch.float32
        assert (rough - full).norm() < 0.03 * full.norm()


def test_views_that_do_not_differ_are_read_once() -> None:
    """Cells that see what their neighbour sees get one view, and each cell finds its own."""
    stored, cells = torch.randn(CHUNKS, LENGTH, WIDTH), 6
    mask = torch.ones(CHUNKS, cells, LENGTH, dtype=torch.bool)
    code = torch.zeros(CHUNKS, cells, LENGTH, dtype=torch.long)
    code[0, 2:] = 1
    mask[1, 4:, 0] = False
    history = History(stored, mask, (code,), torch.randn(2, WIDTH))
    views = history.row_groups()
    assert views is not None
    assert views.of_cell.view(CHUNKS, cells).tolist()[:2] == [[0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 3, 3]]
    seen = history.seen_by(views)
    assert len(seen.mask) == len(views) == CHUNKS + 2
    assert torch.equal(views.of_cells(seen.mask), mask)
    assert torch.equal(views.of_cells(seen.codes[0]), code)
    assert torch.equal(views.one_by_one(views.by_chunk(seen.mask)), seen.mask)


def test_views_that_nearly_all_differ_are_left_as_they_are() -> None:
    code = torch.arange(4)[None, :, None].expand(CHUNKS, 4, LENGTH)
    history = History(torch.randn(CHUNKS, LENGTH, WIDTH), code >= 0, (code,), torch.randn(4, WIDTH))
    assert history.row_groups() is None


@pytest.mark.parametrize("noted", [False, True])
def test_queries_asked_together_get_what_each_gets_alone(noted: bool) -> None:
    """Scores and pools of several shapes in one product, one of them without a gradient; gradients are the same."""
    case = Case(fields=(3,), sparse=False)
    lone = torch.randn(CHUNKS, 1, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    still = torch.randn(CHUNKS, CELLS, 1, WIDTH, dtype=torch.float64)
    found = []
    for together in (True, False):
        mask = torch.ones(CHUNKS, 1, LENGTH, dtype=torch.bool)
        stored, _, reads = stored_items(case.items, case.fields, case.events, case.others)
        stored, how = (stored, reads) if noted else (case.plain()[0], None)
        history = History(stored, mask, (), torch.zeros(1, WIDTH), None, how)
        queries = (case.query, lone, still)
        scores = history.item_scores_of(*queries) if together else tuple(map(history.item_scores, queries))
        weights = (scores[0].softmax(-1), scores[1].sin())
        pooled = history.item_pool_of(*weights) if together else tuple(map(history.item_pool, weights))
        assert [part.shape for part in (*scores, *pooled)] == [
            *((CHUNKS, *query.shape[1:3], LENGTH) for query in queries),
            *(query.shape for query in queries[:2]),
        ]
        total = sum((part.cos().sum() for part in (*scores, *pooled)), torch.zeros(()))
        found.append([total, *torch.autograd.grad(total, [case.query, lone, case.items.rows.weight])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("queries", [1, 9])
def test_scores_and_pools_are_plain_products_with_their_gradients(queries: int) -> None:
    """Few rows and many, each with a gradient of its own, against the same sums in plain torch."""
    stored = torch.randn(CHUNKS, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(CHUNKS, CELLS, queries, WIDTH, dtype=torch.float64, requires_grad=True)
    history = History(stored, torch.ones(CHUNKS, 1, LENGTH, dtype=torch.bool), (), torch.zeros(1, WIDTH))
    scores = history.item_scores(rows)
    pooled = history.item_pool(scores.softmax(-1))
    plain_scores = torch.einsum("cgqd,cld->cgql", rows, stored)
    plain_pooled = torch.einsum("cgql,cld->cgqd", plain_scores.softmax(-1), stored)
    torch.testing.assert_close(pooled, plain_pooled)
    for mine, expected in zip(
        torch.autograd.grad(scores.sin().sum() + pooled.square().sum(), [stored, rows]),
        torch.autograd.grad(plain_scores.sin().sum() + plain_pooled.square().sum(), [stored, rows]),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected)


def test_readings_side_by_side_get_what_each_gets_alone() -> None:
    """Each is sent its own scores and its own pools; one that asks nothing is let through."""
    history = History(torch.randn(CHUNKS, LENGTH, WIDTH), torch.ones(CHUNKS, 1, LENGTH) > 0, (), torch.zeros(1, WIDTH))

    def reading(*queries: Tensor) -> Reading[list[Tensor]]:
        scores = yield list(queries)
        pooled = yield [score.softmax(-1) for score in scores]
        return [*scores, *pooled]

    rows = [torch.randn(CHUNKS, cells, 2, WIDTH) for cells in (1, 3, 3)]
    together = read(history, reading(*rows[:2]), reading(), reading(rows[2]))
    alone = [read(history, reading(*rows[:2]))[0], [], read(history, reading(rows[2]))[0]]
    for mine, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(mine, expected)
