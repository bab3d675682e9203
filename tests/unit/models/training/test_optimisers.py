"""Touched-row rules follow their written rule, equal dense Adam where they should, and leave all other rows alone."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.layers.embeddings import FieldEmbedding
from models.layers.sparse import pooled_by_row
from models.training.optimisers import LazyAdam, Optimisers, RowwiseAdagrad, coalesced, summed_by_row


def _table(rows: int = 12, width: int = 4, seed: int = 0) -> nn.Embedding:
    torch.manual_seed(seed)
    return nn.Embedding(rows, width, sparse=True)


def _gradient(table: nn.Embedding, ids: torch.Tensor, seed: int) -> None:
    torch.manual_seed(seed)
    table.weight.grad = None
    (table(ids) * torch.randn(*ids.shape, table.embedding_dim)).sum().backward()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 5))
def test_rows_are_summed_by_id_whatever_the_repeats(ids, width):
    torch.manual_seed(0)
    index, rows = torch.tensor(ids, dtype=torch.long), torch.randn(len(ids), width)
    distinct, summed = summed_by_row(index, rows)
    assert distinct.tolist() == sorted(set(ids))
    torch.testing.assert_close(summed, torch.zeros(10, width).index_add_(0, index, rows)[distinct])


def test_a_row_that_counts_for_several_ids_is_added_to_each():
    ids, rows = torch.randint(0, 9, (20, 3)), torch.randn(20, 4)
    distinct, summed = pooled_by_row(ids, rows)
    written_out = summed_by_row(ids.flatten(), rows.repeat_interleave(3, 0))
    assert torch.equal(distinct, written_out[0])
    torch.testing.assert_close(summed, written_out[1])


def test_fields_touched_in_every_step_follow_dense_adam_and_the_others_stay():
    """A table of categories in the optimiser that training builds for it."""
    lazy, dense = FieldEmbedding((30, 1200), 4), FieldEmbedding((30, 1200), 4)
    dense.load_state_dict(lazy.state_dict())
    lazy.sparse = True
    rules = [Optimisers(fields, learning_rate=0.05) for fields in (lazy, dense)]
    assert [type(part) for part in rules[0].parts] == [LazyAdam]
    before, codes = lazy.weight.detach().clone(), torch.tensor([[3, 7], [4, 1100], [3, 9]])
    for step in range(20):
        for fields, rule in zip((lazy, dense), rules, strict=True):
            torch.manual_seed(step)
            rule.zero_grad()
            (fields.sum(codes) * torch.randn(3, 4)).sum().backward()
            rule.clip(1.0)
            rule.step()
    torch.testing.assert_close(lazy.weight, dense.weight, rtol=1e-5, atol=1e-6)
    untouched = torch.ones(len(before), dtype=torch.bool)
    untouched[lazy.rows(codes).flatten()] = False
    assert torch.equal(lazy.weight[untouched], before[untouched])


def test_a_gradient_is_coalesced_once_and_keeps_its_value():
    table = _table()
    _gradient(table, torch.tensor([[3, 1], [3, 3]]), 1)
    once = coalesced(table.weight.grad)
    torch.testing.assert_close(once.to_dense(), table.weight.grad.to_dense())
    assert coalesced(once) is once


def test_lazy_adam_is_dense_adam_on_rows_touched_in_every_step():
    lazy, dense = _table(), _table()
    dense.sparse = False
    rule, reference = LazyAdam([lazy.weight], lr=0.05), torch.optim.Adam([dense.weight], lr=0.05)
    ids = torch.tensor([0, 2, 2, 5, 11])
    for step in range(30):
        _gradient(lazy, ids, step), _gradient(dense, ids, step)
        rule.step(), reference.step()
    torch.testing.assert_close(lazy.weight, dense.weight, rtol=1e-5, atol=1e-6)


def test_lazy_adam_with_decay_is_dense_adamw_on_rows_touched_in_every_step():
    lazy, dense = _table(), _table()
    dense.sparse = False
    rule = LazyAdam([lazy.weight], lr=0.05, weight_decay=0.1)
    reference = torch.optim.AdamW([dense.weight], lr=0.05, weight_decay=0.1)
    for step in range(30):
        _gradient(lazy, torch.arange(12), step), _gradient(dense, torch.arange(12), step)
        rule.step(), reference.step()
    torch.testing.assert_close(lazy.weight, dense.weight, rtol=1e-5, atol=1e-6)


def test_lazy_adam_follows_its_written_rule():
    table = _table()
    rule = LazyAdam([table.weight], lr=0.05, weight_decay=0.1)
    value, mean, square = table.weight.detach().clone().double(), torch.zeros(12, 4), torch.zeros(12, 4)
    touches, last, q = [0] * 12, [0] * 12, 0.9 / 0.999**0.5
    rng = torch.Generator().manual_seed(7)
    for step in range(1, 41):
        ids = torch.randint(0, 12, (5,), generator=rng)
        _gradient(table, ids, step)
        gradient = table.weight.grad.to_dense()
        rule.step()
        for row in set(ids.tolist()):
            touches[row] += 1
            missed, k, g = step - last[row], step / touches[row], gradient[row]
            last[row] = step
            mean[row] = 0.9**missed * mean[row] + 0.1 * g
            square[row] = 0.999**missed * square[row] + 0.001 * g**2
            length = 0.05 * (1 - q**k) / (1 - q) / (1 - 0.9**step)
            moved = length * mean[row] / ((square[row] / (1 - 0.999**step)).sqrt() + 1e-8)
            value[row] = (1 - 0.05 * 0.1) ** missed * value[row] - moved
    torch.testing.assert_close(table.weight.detach(), value.float(), rtol=1e-4, atol=1e-5)


def test_lazy_adam_stands_where_dense_adam_will_when_the_row_is_next_touched():
    """A row touched in every fifth step, another in every step: after each touch both are where dense Adam arrives."""
    lazy, dense = _table(), _table()
    dense.sparse = False
    begin = dense.weight.detach().clone()
    rule, reference = LazyAdam([lazy.weight], lr=0.01), torch.optim.Adam([dense.weight], lr=0.01)
    for step in range(1, 201):
        ids = torch.tensor([1, 4] if step % 5 == 0 else [1])
        _gradient(lazy, ids, step), _gradient(dense, ids, step)
        rule.step(), reference.step()
    for step in range(201, 205):  # dense Adam walks on without gradients for row 4
        _gradient(dense, torch.tensor([1]), step)
        reference.step()
    travelled = (dense.weight - begin)[4].norm()
    assert travelled > 0.1
    assert (lazy.weight - dense.weight)[4].norm() < 0.02 * travelled


def test_rowwise_adagrad_follows_its_written_rule():
    table = _table()
    rule = RowwiseAdagrad([table.weight], lr=0.1, weight_decay=0.01)
    expected, total = table.weight.detach().clone(), torch.zeros(12)
    rng = torch.Generator().manual_seed(3)
    for step in range(20):
        ids = torch.randint(0, 12, (6,), generator=rng)
        _gradient(table, ids, step)
        gradient = table.weight.grad.to_dense()
        rule.step()
        for row in set(ids.tolist()):
            total[row] += gradient[row].square().mean()
            expected[row] = expected[row] * (1 - 0.1 * 0.01) - 0.1 * gradient[row] / (total[row].sqrt() + 1e-8)
    torch.testing.assert_close(table.weight.detach(), expected)


@pytest.mark.parametrize("rule", [LazyAdam, RowwiseAdagrad])
def test_rows_that_no_batch_touched_keep_their_bits(rule):
    table = _table()
    before = table.weight.detach().clone()
    optimiser = rule([table.weight], lr=0.1, weight_decay=0.5)
    for step in range(5):
        _gradient(table, torch.tensor([1, 4]), step)
        optimiser.step()
    untouched = [row for row in range(12) if row not in (1, 4)]
    assert torch.equal(table.weight[untouched], before[untouched])
    assert not torch.equal(table.weight[[1, 4]], before[[1, 4]])


def test_many_rows_are_updated_block_by_block_without_a_seam():
    lazy, dense = _table(10_000, 2), _table(10_000, 2)
    dense.sparse = False
    rule, reference = LazyAdam([lazy.weight], lr=0.05), torch.optim.Adam([dense.weight], lr=0.05)
    for step in range(3):
        _gradient(lazy, torch.arange(10_000), step), _gradient(dense, torch.arange(10_000), step)
        rule.step(), reference.step()
    torch.testing.assert_close(lazy.weight, dense.weight, rtol=1e-5, atol=1e-6)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.head = nn.Embedding(20, 4, sparse=True), nn.Linear(4, 1)
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(self.table(ids))).squeeze(-1)


def _steps(net: _Net, optimisers: Optimisers, begin: int, end: int) -> None:
    for step in range(begin, end):
        torch.manual_seed(step)
        optimisers.zero_grad()
        net(torch.randint(0, 20, (8,))).square().mean().backward()
        optimisers.clip(0.5)
        optimisers.step()


@pytest.mark.parametrize("rule", ["lazy_adam", "rowwise_adagrad"])
def test_a_saved_state_continues_to_the_same_bits(rule):
    whole, broken = _Net(), _Net()
    first = Optimisers(whole, learning_rate=0.01, embedding_rule=rule)
    _steps(whole, first, 0, 10)
    second = Optimisers(broken, learning_rate=0.01, embedding_rule=rule)
    _steps(broken, second, 0, 6)
    again = Optimisers(broken, learning_rate=0.01, embedding_rule=rule)
    again.load_state_dict(second.state_dict())
    _steps(broken, again, 6, 10)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, broken.state_dict()[name]), name


def test_each_parameter_gets_the_rule_that_fits_it_and_a_frozen_one_gets_none():
    net = _Net()
    before = {name: p.detach().clone() for name, p in net.frozen.named_parameters()}
    optimisers = Optimisers(net, learning_rate=0.1, weight_decay=0.5)
    assert [type(part) for part in optimisers.parts] == [torch.optim.AdamW, LazyAdam]
    assert set(optimisers.named) == {"table.weight", "head.weight", "head.bias"}
    _steps(net, optimisers, 0, 5)
    for name, p in net.frozen.named_parameters():
        assert torch.equal(p, before[name])
    with pytest.raises(ValueError, match="not trained"):
        optimisers.load_state_dict({"frozen.weight": {}})
    with pytest.raises(ValueError, match="every parameter is frozen"):
        Optimisers(net.frozen, learning_rate=0.1)


def test_clipping_counts_sparse_and_dense_gradients_together():
    net, dense = _Net(), _Net()
    dense.table.sparse = False
    ids = torch.tensor([1, 1, 2, 7])
    norms = []
    for one in (net, dense):
        (100 * one(ids)).square().sum().backward()
        norms.append(Optimisers(one, learning_rate=0.1).clip(1.0))
    expected = torch.nn.utils.clip_grad_norm_([p for p in dense.parameters() if p.grad is not None], 1e9)
    torch.testing.assert_close(norms[0], norms[1])
    torch.testing.assert_close(expected, torch.tensor(1.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(net.table.weight.grad.to_dense(), dense.table.weight.grad)


def test_the_cost_follows_the_touched_rows_and_not_the_table():
    """100 times the rows, the same batch: dense Adam would take about 100 times as long, these less than 3 times."""
    seconds = {}
    for rows in (10_000, 1_000_000):
        table = nn.Embedding(rows, 16, sparse=True)
        rule, ids = LazyAdam([table.weight]), torch.randint(0, 10_000, (2000,))
        _gradient(table, ids, 0)
        rule.step()
        best = 9.0
        for _ in range(10):
            begun = time.perf_counter()
            rule.step()
            best = min(best, time.perf_counter() - begun)
        seconds[rows] = best
    assert seconds[1_000_000] < 3 * seconds[10_000] + 1e-3
