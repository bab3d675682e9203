"""CRP draws the pairs that the paper means, computes its loss to the letter, and pulls two domains together."""

import math

import pytest
import torch
from torch import Tensor, nn

from models.layers.contrast import SHORTEST, ContrastConfig, CrossRepresentation, ShortHistory, directions, pair_loss


def histories(rows: int = 30, length: int = 6, items: int = 50, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    item = torch.randint(1, items, (rows, length), generator=rng)
    stop = torch.randint(0, length + 1, (rows, 1), generator=rng)
    return item, torch.arange(length) < stop


class Watched:
    """A table that remembers what was asked of it."""

    def __init__(self, items: int = 50, width: int = 8, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(items, width))
        self.asked: list[tuple[Tensor, Tensor]] = []

    def __call__(self, item: Tensor, row: Tensor) -> Tensor:
        self.asked.append((item, row))
        return self.weight[item]


def terms(config: ContrastConfig, seed: int = 0, user: Tensor | None = None, **changes):
    given = {
        "target": histories(seed=1),
        "source": histories(seed=2),
        "user": torch.arange(30) if user is None else user,
        "embed_target": Watched(seed=3),
        "embed_source": Watched(seed=4),
        "generator": torch.Generator().manual_seed(seed),
    }
    return CrossRepresentation(config).terms(**{**given, **changes})


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_the_loss_is_the_papers_sum_of_log_ratios(temperature):
    """Eqs. 3-5 written out: -(1/B) sum_i log[exp(s_i+ / tau) / sum_j exp(s_j- / tau)]."""
    torch.manual_seed(0)
    similar, foreign = torch.rand(7, dtype=torch.float64), torch.rand(11, dtype=torch.float64) * 2 - 1
    total = sum(
        math.log(math.exp(float(s) / temperature) / sum(math.exp(float(f) / temperature) for f in foreign))
        for s in similar
    )
    assert pair_loss(similar, foreign, temperature, "seed").item() == pytest.approx(-total / 7)
    with_positive = sum(
        math.log(
            math.exp(float(s) / temperature)
            / (math.exp(float(s) / temperature) + sum(math.exp(float(f) / temperature) for f in foreign))
        )
        for s in similar
    )
    assert pair_loss(similar, foreign, temperature, "infonce").item() == pytest.approx(-with_positive / 7)


def test_the_loss_may_be_negative_and_never_passes_its_floor():
    perfect = pair_loss(torch.ones(5), -torch.ones(64), 0.5, "seed").item()
    assert perfect == pytest.approx(-2 / 0.5 + math.log(64))
    assert pair_loss(torch.ones(5), -torch.ones(4), 0.5, "seed").item() < 0
    assert pair_loss(torch.ones(5), -torch.ones(4), 0.5, "infonce").item() > 0


def test_two_events_of_a_row_differ_and_every_valid_one_is_drawn_equally_often():
    item, mask = torch.arange(1, 9).repeat(2, 1), torch.zeros(2, 8, dtype=torch.bool)
    mask[0, 2:5] = True
    mask[1, 0:2] = True
    side = ShortHistory.of(item, mask)
    one, other = side.two_of(torch.zeros(6000, dtype=torch.long), torch.Generator().manual_seed(0))
    assert (one != other).all()
    drawn = torch.bincount(side.item[torch.cat([one, other])], minlength=9)
    assert set(drawn.nonzero()[:, 0].tolist()) == {3, 4, 5}
    assert (drawn[3:6] - 4000).abs().max() < 250
    both = torch.stack(side.two_of(torch.ones(50, dtype=torch.long), None))
    assert set(side.item[both].flatten().tolist()) == {1, 2}


def test_padding_and_unknown_items_are_never_drawn():
    item, mask = histories(seed=5)
    item[:, 1] = 0
    item[~mask] = 49
    item[mask & (item == 49)] = 3
    table = Watched()
    terms(ContrastConfig(negatives=500), target=(item, mask), source=None, embed_target=table)
    asked = torch.cat([items for items, _ in table.asked])
    assert not {0, 49} & set(asked.tolist())


def test_what_lies_under_the_padding_changes_nothing():
    item, mask = histories(seed=6)
    other = torch.where(mask, item, torch.randint(1, 50, item.shape))
    config = ContrastConfig(negatives=64)
    first, second = terms(config, target=(item, mask)), terms(config, target=(other, mask))
    assert all(torch.equal(first[name], second[name]) for name in ("PT", "PS", "PC"))


def test_negative_pairs_come_from_different_users_and_hold_different_items():
    user = torch.arange(30) % 3
    table = Watched(items=6)
    item, mask = histories(items=6, seed=7)
    crp = CrossRepresentation(ContrastConfig(negatives=800))
    side = ShortHistory.of(item, mask)
    pairs = crp.draw(side, side, user, None, torch.Generator().manual_seed(0))
    assert pairs is not None
    positive, negative = pairs
    assert len(negative.left) == 800
    assert (user[side.row[negative.left]] != user[side.row[negative.right]]).all()
    assert (side.item[negative.left] != side.item[negative.right]).all()
    assert (side.item[positive.left] != side.item[positive.right]).all()
    assert torch.equal(side.row[positive.left], side.row[positive.right])
    assert table.asked == []


def test_equal_ids_of_different_target_domains_are_different_items():
    item, mask = torch.ones(4, 2, dtype=torch.long), torch.ones(4, 2, dtype=torch.bool)
    item[:, 1] = 2
    side, user = ShortHistory.of(item, mask), torch.arange(4)
    crp = CrossRepresentation(ContrastConfig(negatives=300))
    drawn = crp.draw(side, side, user, torch.tensor([0, 0, 1, 1]), None)
    assert drawn is not None
    left, right = drawn[1].left, drawn[1].right
    equal = side.item[left] == side.item[right]
    assert equal.any()
    assert (side.row[left][equal] // 2 != side.row[right][equal] // 2).all()


def test_rows_give_positives_only_where_they_have_enough_events():
    """Two events of one side for PT, one of each for PC; each row at most once."""
    item = torch.arange(1, 13).view(4, 3)
    target = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]).bool()
    source = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]]).bool()
    crp, user = CrossRepresentation(ContrastConfig(negatives=8)), torch.arange(4)
    t, s = ShortHistory.of(item, target), ShortHistory.of(item, source)
    within, across = crp.draw(t, t, user, None, None), crp.draw(t, s, user, None, None)
    assert within is not None
    assert across is not None
    assert t.row[within[0].left].tolist() == [0, 3]
    assert t.row[across[0].left].tolist() == s.row[across[0].right].tolist() == [1, 3]


def test_without_the_cross_pair_nothing_is_drawn_for_it_and_the_others_stay():
    source = Watched(seed=4)
    losses = terms(ContrastConfig(negatives=64, cross_weight=0), embed_source=source)
    assert set(losses) == {"PT", "PS"}
    assert len(source.asked) == 1
    rows = int((histories(seed=2)[1].sum(1) >= 2).sum())
    assert len(source.asked[0][0]) <= 2 * rows + 2 * 64


def test_each_side_is_asked_once_and_for_drawn_items_alone():
    target, source = Watched(), Watched()
    terms(ContrastConfig(negatives=16), embed_target=target, embed_source=source)
    for table in (target, source):
        assert len(table.asked) == 1
        assert len(table.asked[0][0]) <= 3 * 30 + 3 * 16


def test_the_loss_is_the_weighted_sum_of_its_types():
    config = ContrastConfig(negatives=32, target_weight=0.5, source_weight=2, cross_weight=3)
    parts = terms(config, seed=9)
    whole = CrossRepresentation(config).loss(
        target=histories(seed=1),
        source=histories(seed=2),
        user=torch.arange(30),
        embed_target=Watched(seed=3),
        embed_source=Watched(seed=4),
        generator=torch.Generator().manual_seed(9),
    )
    assert whole is not None
    assert whole.item() == pytest.approx(0.5 * parts["PT"].item() + 2 * parts["PS"].item() + 3 * parts["PC"].item())


def test_a_batch_of_one_user_or_of_no_history_has_no_loss():
    crp = CrossRepresentation()
    item, mask = histories()
    given = {"embed_target": Watched(), "embed_source": Watched(), "user": torch.zeros(30, dtype=torch.long)}
    assert crp.loss(target=(item, mask), source=(item, mask), **given) is None
    given["user"] = torch.arange(30)
    assert crp.loss(target=(item, mask & False), source=(item, mask & False), **given) is None
    assert crp.loss(target=None, source=None, **given) is None


def test_the_same_seed_draws_the_same_pairs():
    config = ContrastConfig(negatives=32)
    first, again, other = (terms(config, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_training_on_it_brings_a_users_items_of_both_domains_together():
    """Two circles of users, each with its own items in both domains: items of one circle end close across domains."""
    rng = torch.Generator().manual_seed(0)
    circle = torch.arange(60) % 2
    draw = [torch.randint(1, 20, (60, 8), generator=rng) + 20 * circle[:, None] for _ in range(2)]
    mask = torch.ones(60, 8, dtype=torch.bool)
    target, source = Watched(seed=1), Watched(seed=2)
    crp = CrossRepresentation(ContrastConfig(negatives=256))
    optimiser = torch.optim.Adam([target.weight, source.weight], lr=0.02)
    for step in range(150):
        loss = crp.loss(
            target=(draw[0], mask),
            source=(draw[1], mask),
            user=torch.arange(60),
            embed_target=target,
            embed_source=source,
            generator=torch.Generator().manual_seed(step),
        )
        assert loss is not None
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    t, s = (nn.functional.normalize(table.weight.detach(), dim=1) for table in (target, source))
    near = (t[1:20] @ s[1:20].T).mean() + (t[21:40] @ s[21:40].T).mean()
    far = (t[1:20] @ s[21:40].T).mean() + (t[21:40] @ s[1:20].T).mean()
    assert (near - far) / 2 > 0.8


def test_a_config_that_cannot_be_meant_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        ContrastConfig(temperature=0)
    with pytest.raises(ValueError, match="not be negative"):
        ContrastConfig(cross_weight=-1)


def test_an_item_that_starts_at_zero_does_not_drown_the_others() -> None:
    """A new domain's own items are zero at first: their gradient stays of the size of all others'."""
    vectors = torch.tensor([[0.0, 0.0], [0.3, 0.4]], requires_grad=True)
    shown = directions(vectors)
    assert torch.allclose(shown[1], torch.tensor([0.6, 0.8]))
    shown.sum().backward()
    assert vectors.grad is not None
    assert bool((vectors.grad.norm(dim=1) <= 2 / SHORTEST).all())
