"""Lists: a softmax over a question's candidates, and what chooses by where the right one stands."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.batch import Batch
from models.training.listwise import listwise_losses, mean_reciprocal_rank
from models.training.loop import TrainConfig, task_loss, train

LENGTHS = (3, 1, 5)


def ragged(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    label = torch.cat([torch.eye(1, length)[0] for length in LENGTHS])
    return torch.randn(sum(LENGTHS), requires_grad=True), label


def test_the_loss_of_a_list_is_the_cross_entropy_of_its_right_row():
    """Lists of any length, against torch's own."""
    score, label = ragged()
    mine = listwise_losses(score, label)
    parts = score.split(LENGTHS)
    theirs = torch.stack([F.cross_entropy(part[None], torch.zeros(1, dtype=torch.long)) for part in parts])
    torch.testing.assert_close(mine, theirs)
    (gradient,) = torch.autograd.grad(mine.sum(), score, retain_graph=True)
    (expected,) = torch.autograd.grad(theirs.sum(), score)
    torch.testing.assert_close(gradient, expected)


def test_a_constant_added_to_a_list_changes_nothing_however_large():
    score, label = ragged()
    shifted = score.detach() + torch.tensor([1e4, -1e4, 50.0]).repeat_interleave(torch.tensor(LENGTHS))
    torch.testing.assert_close(
        listwise_losses(shifted, label), listwise_losses(score.detach(), label), rtol=0, atol=2e-3
    )


def test_rows_that_begin_no_list_are_refused():
    with pytest.raises(ValueError, match="begins with its relevant row"):
        listwise_losses(torch.zeros(3), torch.tensor([0.0, 1.0, 0.0]))


def test_reciprocal_rank_counts_ties_by_the_mean_of_their_orders():
    """Right above all, right level with one, right below two."""
    label = np.array([1, 0, 0, 1, 0, 1, 0, 0])
    score = np.array([3.0, 1.0, 2.0, 5.0, 5.0, 0.0, 1.0, 1.0])
    assert mean_reciprocal_rank(label, score) == pytest.approx((1 + (1 + 0.5) / 2 + 1 / 3) / 3)


class Scorer(torch.nn.Module):
    """A number an item."""

    def __init__(self) -> None:
        super().__init__()
        self.worth = torch.nn.Parameter(torch.zeros(12))

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.worth[batch.item] + batch.offset


class Questions:
    """Each question asks for an even item among odd ones."""

    def __init__(self, make_batch, count: int = 40) -> None:
        self.count, self._make = count, make_batch

    def __len__(self) -> int:
        return 2

    def batches(self, epoch: int, start: int = 0):
        chance = np.random.default_rng(epoch)
        for step in range(2):
            item = np.stack([np.r_[2 * chance.integers(0, 6), 2 * chance.integers(0, 6, 3) + 1] for _ in range(20)])
            label = np.tile([1.0, 0, 0, 0], 20)
            if step >= start:
                yield self._make(item.reshape(-1), label)


def make_batch(item: np.ndarray, label: np.ndarray) -> Batch:
    from models.batch import Events

    rows = len(item)
    none, nothing = torch.zeros(rows, dtype=torch.long), torch.zeros((1, 1), dtype=torch.long)
    events = Events(nothing, nothing, nothing.float(), nothing, none, none, none)
    empty = torch.zeros((rows, 0), dtype=torch.long)
    ones = torch.ones(rows)
    index = torch.from_numpy(item)
    return Batch(none, none, index, empty, empty, empty, none, torch.from_numpy(label).float(), ones, 0 * ones, events)


def test_the_training_loop_learns_from_lists_and_chooses_by_their_mrr():
    """What is right in every list comes to stand above what never is; the metric says how far."""
    model = Scorer()
    config = TrainConfig(epochs=5, learning_rate=0.1, loss="listwise", consider_start=True)
    result = train(model, Questions(make_batch), config=config, validation=Questions(make_batch))
    assert result.metric == "mrr"
    assert result.best == 1.0
    worth = model.worth.detach()
    assert worth[0::2].min() > worth[1::2].max()


def test_a_list_weighs_as_its_right_row():
    """Weights of wrong rows count for nothing, and factors scale without being divided out."""
    from dataclasses import replace

    batch = next(Questions(make_batch).batches(0))
    score = torch.randn(len(batch), generator=torch.Generator().manual_seed(1))
    plain = task_loss(score, batch, "ctr", loss="listwise")
    heavy = replace(batch, weight=torch.where(batch.label > 0, 2.0, 7.0))
    torch.testing.assert_close(task_loss(score, heavy, "ctr", loss="listwise"), plain)
    half = torch.full((len(batch),), 0.5)
    torch.testing.assert_close(task_loss(score, heavy, "ctr", half, "listwise"), plain / 2)


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="judged by mrr"):
        TrainConfig(loss="listwise", metric="auc")
    with pytest.raises(ValueError, match="judged by mrr"):
        TrainConfig(metric="mrr")
