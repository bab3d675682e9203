"""A tower that never sees a source tells how far source labels agree with what the target teaches."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from models.batch import Batch, Events
from models.cctl.influence import SourceValues, TargetTower
from models.cctl.information_flow import ANY_SOURCE, Traits
from models.cctl.weigher import CollaborativeTransfer, TransferConfig
from models.training.loop import TrainConfig, train
from models.training.optimisers import Optimisers

TARGET, FEED = 0, 1
CONFIG = TrainConfig(learning_rate=0.05, progress_every_steps=0)


def a_batch(domain: int, taste: Tensor, label: Tensor, feed: Tensor | None = None) -> Batch:
    rows = len(label)
    zero, none = torch.zeros(rows, dtype=torch.long), torch.zeros(rows, 0, dtype=torch.long)
    past = torch.zeros(1, 1, dtype=torch.long)
    events = Events(past, past, past.float(), past, zero, zero, zero)
    codes = (zero if feed is None else feed)[:, None]
    items = (taste * 1000).long() + 4000
    return Batch(zero + domain, torch.arange(rows), items, codes, none, none, zero, label, label * 0 + 1, taste, events)


class Taste(nn.Module):
    """Clicks grow with what stands in ``offset``, once that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1))

    def forward(self, batch: Batch) -> Tensor:
        return batch.offset * self.weight[0, 0]


def rows_of(seed: int, domain: int, sign: Tensor | float, feed: Tensor | None = None, rows: int = 256) -> Batch:
    """Rows whose clicks follow the taste where ``sign`` is 1, go against it at -1 and are chance at 0."""
    rng = torch.Generator().manual_seed(seed)
    taste = torch.randn(rows, generator=rng)
    label = (torch.rand(rows, generator=rng) < torch.sigmoid(2 * taste * sign)).float()
    return a_batch(domain, taste, label, feed)


@dataclass
class Listed:
    """Batches in a list, the same in every epoch."""

    held: list[Batch]

    def __len__(self) -> int:
        return len(self.held)

    def batches(self, epoch: int, start: int = 0):
        yield from self.held[start:]


def target(batches: int = 12, rows: int = 256) -> Listed:
    return Listed([rows_of(seed, TARGET, 1.0, rows=rows) for seed in range(batches)])


def a_target_tower(data: Listed, passes: int = 4) -> TargetTower:
    net = Taste()
    target_tower = TargetTower(net, Optimisers(net, learning_rate=0.05), CONFIG)
    target_tower.learn_ahead(data, passes)
    return target_tower


def test_the_source_value_is_one_for_rows_like_the_targets_zero_for_chance_and_negative_for_the_opposite():
    target_tower = a_target_tower(target())
    assert target_tower.certainty > 10
    value = [
        float(target_tower.influence(rows_of(99, 1, sign, rows=4000)).mean()) / target_tower.unit
        for sign in (1.0, 0.0, -1.0)
    ]
    assert value == pytest.approx([1, 0, -1], abs=0.15)


def test_a_target_tower_that_never_learned_anything_certain_says_nothing():
    """Labels of chance: influence on fresh rows is not certain, so there is no unit to judge a source by."""
    noise = Listed([rows_of(seed, TARGET, 0.0, rows=64) for seed in range(4)])
    assert a_target_tower(noise).unit == 0.0


def test_source_values_lower_a_bad_feed_and_leaves_the_others_with_their_source():
    """Four feeds, one reversed: its key moves down, the source is judged without it, codes of chance are not moved."""
    target_tower, source_values = a_target_tower(target()), SourceValues(0.2)
    feed = torch.arange(4096) % 4 + 1
    for seed in range(3):
        rows = rows_of(50 + seed, 1, torch.where(feed == 3, -1.0, 1.0), feed, rows=4096)
        source_values.add(Traits.of(rows), target_tower.influence(rows), target_tower.unit)
    moved = source_values.solve()
    one_each = Traits.of(a_batch(1, torch.zeros(4), torch.zeros(4), torch.arange(1, 5)))
    value = source_values.expected + moved[one_each.keys()].sum(1)
    assert value[[0, 1, 3]].tolist() == pytest.approx([1, 1, 1], abs=0.25)
    assert value[2] < -0.6
    assert int((moved != 0).sum()) == 2


def test_a_source_of_which_nothing_is_known_keeps_its_starting_weight():
    transfer = CollaborativeTransfer(TransferConfig(targets=(TARGET,), start=0.7, companion=False))
    net = Taste()
    transfer.begin(net, Optimisers(net, learning_rate=0.05), CONFIG)
    assert transfer.weights_of(rows_of(1, 5, 1.0)).tolist() == pytest.approx([0.7] * 256)


def test_weights_are_known_from_the_first_step_and_the_report_names_the_bad_feed():
    """Target tower and source values come first: the lying feed is harmful, its source as a whole is worth it."""
    feed = torch.arange(512) % 4 + 1
    source_rows = [rows_of(70 + seed, 1, torch.where(feed == 3, -1.0, 1.0), feed, rows=512) for seed in range(12)]
    data = Listed([batch for pair in zip(target().held, source_rows, strict=True) for batch in pair])
    transfer = CollaborativeTransfer(TransferConfig(targets=(TARGET,), sync_every=4, companion=False))
    transfer.target_tower_from(target(), Listed(source_rows))
    train(Taste(), data, config=CONFIG, sample_weigher=transfer)
    report = transfer.report()
    weight = transfer.weights_of(source_rows[0])
    assert float(weight[feed == 3].max()) < 0.1
    assert float(weight[feed != 3].min()) > 0.9
    assert report.weights[0]["p10"] < 0.1
    assert report.weights[0]["p90"] > 0.9
    assert report.verdicts[1].borrow
    assert [(part.source, part.code) for part in report.parts if part.harms] == [(1, 3)]


def lying_partner() -> tuple[CollaborativeTransfer, Listed]:
    """Rows of four partners, one of which lies: only the bookkeeping, here the user's number, knows whose they are."""
    signs = torch.where(torch.arange(512) % 4 == 2, -1.0, 1.0)
    source_rows = Listed([rows_of(70 + seed, 1, signs, rows=512) for seed in range(12)])
    config = TransferConfig(targets=(TARGET,), sync_every=4, companion=False)
    transfer = CollaborativeTransfer(config, provenance=lambda batch: batch.user[:, None] % 4 + 1)
    transfer.target_tower_from(target(), source_rows)
    return transfer, source_rows


def test_rows_are_weighed_by_where_they_came_from_though_no_network_sees_it():
    transfer, source_rows = lying_partner()
    data = Listed([batch for pair in zip(target().held, source_rows.held, strict=True) for batch in pair])
    train(Taste(), data, config=CONFIG, sample_weigher=transfer)
    weight, lying = transfer.weights_of(source_rows.held[0]), torch.arange(512) % 4 == 2
    assert float(weight[lying].max()) < 0.1
    assert float(weight[~lying].min()) > 0.9
    harmful = [(part.source, part.group, part.code) for part in transfer.report().parts if part.harms]
    assert harmful == [(1, "provenance", 3)]


def test_sources_are_judged_before_training_which_then_goes_on_from_there():
    """Of the model nothing changes; the weights of the training are those of the judgement, learned once."""
    transfer, source_rows = lying_partner()
    net = Taste()
    report = transfer.judge(net, Optimisers(net, learning_rate=CONFIG.learning_rate), CONFIG)
    assert torch.equal(net.weight, torch.zeros(1, 1))
    assert report.verdicts[1].word == "borrow"
    assert report.weights[0]["p10"] < 0.1
    assert report.weights[0]["p90"] > 0.9
    judged, tower = transfer.weights_of(source_rows.held[0]), transfer.learner.tower
    train(net, Listed([target().held[0], source_rows.held[0]] * 4), config=CONFIG, sample_weigher=transfer)
    assert transfer.learner.tower is tower
    assert torch.equal(transfer.weights_of(source_rows.held[0]), judged)


def test_a_target_tower_that_is_not_sure_of_its_target_judges_only_where_nobody_guards_it():
    net = Taste()
    optimisers = Optimisers(net, learning_rate=0.05)
    guarded, unguarded = TargetTower(net, optimisers, CONFIG), TargetTower(net, optimisers, CONFIG, guarded=False)
    for target_tower in (guarded, unguarded):
        target_tower.seen = [100.0, 20.0, 105.0]  # t = 2
        assert 1 < target_tower.certainty < 3
    assert guarded.unit == 0
    assert unguarded.unit == pytest.approx(0.2)


def test_a_key_stands_for_one_source_and_code_and_says_which():
    traits = Traits.of(a_batch(2, torch.zeros(3), torch.zeros(3), torch.tensor([1, 2, 2])))
    keys, names = traits.keys(), traits.names()
    assert keys.shape == (3, 3)
    assert torch.equal(keys[1], keys[2])
    assert {names[key] for key in keys[0].tolist()} == {
        (2, "source", 0, 0),
        (2, "item", 0, 1),
        (ANY_SOURCE, "item", 0, 1),
    }
