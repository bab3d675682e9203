"""The wide features that a score starts from: the item's mean and the user's own leaning."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from models.batch import Batch, Events
from models.layers.wide import (
    RATING_FEATURES,
    SHRINKAGE,
    as_score,
    click_features,
    plain_features,
    rating_features,
    residual_sums,
    value_shares,
)
from models.ranker import adapters
from models.ranker.network import DomainConfig, Ranker, RankerConfig


def some_events() -> Events:
    return Events(
        item=torch.tensor([[1, 2, 3, 0], [2, 2, 9, 1]]),
        action=torch.zeros(2, 4).long(),
        value=torch.tensor([[5.0, 1.0, 4.0, 0.0], [3.0, 4.0, 2.0, 1.0]]),
        time=torch.arange(4).repeat(2, 1),
        row=torch.tensor([0, 0, 1]),
        start=torch.tensor([0, 1, 0]),
        stop=torch.tensor([3, 1, 2]),
    )


MEANS = torch.tensor([3.0, 4.0, 2.0, 3.5])


def test_the_first_plain_feature_is_the_shrunken_mean_residual_of_the_visible_events():
    """Row 0 saw 5 - 4, 1 - 2 and 4 - 3.5; row 1 saw nothing; row 2 saw 3 - 2 and 4 - 2."""
    evidence = plain_features(some_events(), MEANS)
    torch.testing.assert_close(evidence[:, 0], torch.tensor([0.5 / (3 + SHRINKAGE), 0.0, 3.0 / (2 + SHRINKAGE)]))
    assert evidence[1].tolist() == [0.0, 0.0, 0.0]


def test_what_a_row_may_not_see_never_changes_its_features():
    """Padding, the future and the value of hidden events have no part in it."""
    events = some_events()
    hidden = events.value.clone()
    hidden[0, 3], hidden[1, 2:] = 1e6, -1e6
    assert torch.equal(plain_features(events, MEANS), plain_features(replace(events, value=hidden), MEANS))


def test_an_unknown_item_is_compared_with_the_overall_mean():
    """Items beyond the table are read as row 0."""
    events = replace(some_events(), start=torch.tensor([0, 0, 2]), stop=torch.tensor([0, 0, 3]))
    assert plain_features(events, MEANS)[2, 0] == torch.tensor((2.0 - 3.0) / (1 + SHRINKAGE))


def test_a_mean_click_rate_becomes_its_logit_and_a_mean_rating_stays():
    """The offset stands in the unit of the network's output."""
    torch.testing.assert_close(as_score(torch.tensor([0.5, 0.25]), "ctr").sigmoid(), torch.tensor([0.5, 0.25]))
    assert as_score(torch.tensor([3.5]), "rating").item() == 3.5


EDGES, USUAL = torch.tensor([1.5, 2.5, 3.5, 4.5]), torch.tensor([0.1, 0.1, 0.2, 0.3, 0.3])


def test_shares_say_how_much_more_often_than_usual_each_value_was_given():
    """Row 0 saw 5, 1 and 4; row 1 saw nothing; row 2 saw 3 and 4."""
    shares = value_shares(some_events(), EDGES, USUAL)
    expected = torch.stack(
        [
            (torch.tensor([1.0, 0, 0, 1, 1]) - 3 * USUAL) / (3 + SHRINKAGE),
            torch.zeros(5),
            (torch.tensor([0, 0, 1.0, 1, 0]) - 2 * USUAL) / (2 + SHRINKAGE),
        ]
    )
    torch.testing.assert_close(shares, expected)


def test_of_a_user_of_whom_nothing_is_seen_every_wide_feature_is_zero():
    """He gets the item's mean and nothing beside it."""
    plain = plain_features(some_events(), MEANS)
    features = rating_features(plain, value_shares(some_events(), EDGES, USUAL), torch.tensor([0.5, 0.5, -0.5]))
    assert features.shape == (3, RATING_FEATURES)
    assert not features[1].any()
    assert features[0, :3].tolist() == [1.0, plain[0, 0].item(), 0.5]


def test_wide_features_stand_beside_a_network_that_begins_at_nothing():
    """A fresh rating network answers with its wide part alone; a training row is left out of its own features."""
    torch.manual_seed(0)
    ranker = Ranker(RankerConfig(source_items=4, task="rating", width=8, wide=True, mean_label=3.0)).eval()
    slot = ranker.add_domain(DomainConfig(items=3))
    owned = ranker.owned(slot)
    assert owned.items is not None
    owned.items.set_means(torch.tensor([3.0, 4.0, 2.0]))
    with torch.no_grad():
        ranker.wide.weights[2] = 0.5  # half of the item's bias once more
    none = torch.zeros(3, 0).long()
    batch = Batch(
        domain=torch.full((3,), slot),
        user=torch.zeros(3).long(),
        item=torch.tensor([1, 1, 1]),
        item_features=none,
        user_features=none,
        context=none,
        time=torch.ones(3).long(),
        label=torch.zeros(3),
        weight=torch.ones(3),
        offset=torch.tensor([0.0, 0.0, -0.4]),
        lifelong=some_events(),
    )
    torch.testing.assert_close(ranker(batch), torch.tensor([4.5, 4.0, 3.6 + 0.5 * 0.6]))
    torch.testing.assert_close(ranker.wide_score(batch)[1] + batch.offset, ranker(batch))


def test_events_that_do_not_count_have_no_part_in_the_sums():
    """Own events and all others make up the whole history."""
    events = some_events()
    own = torch.tensor([[True, False, True, False], [False, True, True, False]])
    whole = residual_sums(events, MEANS)
    parts = [residual_sums(events, MEANS, counted) for counted in (own, ~own)]
    for number in range(3):
        torch.testing.assert_close(parts[0][number] + parts[1][number], whole[number])
    assert parts[0][2].tolist() == [2.0, 0.0, 1.0]


def test_a_leaning_is_told_by_other_domains_until_own_events_take_over():
    """The same two residuals: with no own events others speak, with many own events they hardly do."""

    def leaning(own_count: float, other_sum: float) -> float:
        own = (torch.zeros(1), torch.zeros(1), torch.tensor([own_count]))
        others = (torch.tensor([other_sum]), torch.tensor([1.0]), torch.tensor([10.0]))
        features = click_features(tuple(p.double() for p in own), tuple(p.double() for p in others), torch.zeros(1))
        return float(features[0, 2])

    assert leaning(0, 10) > 0.3
    assert leaning(200, 10) < 0.02
    assert leaning(0, -10) == -leaning(0, 10)


def test_of_a_user_of_whom_nothing_is_seen_every_feature_of_clicks_is_zero():
    """Whatever the item is like."""
    nothing = tuple(torch.zeros(1).double() for _ in range(3))
    assert not click_features(nothing, nothing, torch.tensor([0.7])).any()


@pytest.fixture
def of_clicks(make_ranker: Callable[..., Ranker], chance: torch.Generator) -> Ranker:
    """A ranker of clicks with wide features: items of two source domains, and one domain's own."""
    ranker = make_ranker(wide=True)
    with torch.no_grad():
        ranker.wide.source_slot[1:30], ranker.wide.source_slot[30:] = 0, 1
        ranker.owned(2).values.copy_(2 + torch.rand(len(ranker.owned(2).values), generator=chance))
        ranker.wide.weights.copy_(torch.randn(len(ranker.wide.weights), generator=chance))
    return ranker


def test_features_of_clicks_do_not_depend_on_batch_mates(of_clicks: Ranker, make_batch: Callable[..., Batch]):
    """Rows of three domains at once are told what each is told alone."""
    batch = make_batch(12)
    together = of_clicks.wide_score(batch)
    for row in range(12):
        alone = of_clicks.wide_score(batch.rows(torch.tensor([row])))
        torch.testing.assert_close(alone[0][0], together[0][row])
        torch.testing.assert_close(alone[1][0], together[1][row])


def test_own_events_are_those_of_the_rows_domain(of_clicks: Ranker, make_batch: Callable[..., Batch]):
    """A source domain finds its own in the long history, a target in its short one; each counts all others apart."""
    for slot in range(3):
        batch = make_batch(8, domain=slot)
        own, others = torch.expm1(5 * of_clicks.wide_score(batch)[0][:, 4:6]).round().T
        long = batch.lifelong.mask()
        assert (own + others == long.sum(1) + (batch.short_target.mask().sum(1) if slot == 2 else 0)).all()
        mine = of_clicks.wide.source_slot[batch.lifelong.item[batch.lifelong.row]] == slot
        expected = batch.short_target.mask().sum(1) if slot == 2 else (mine & long).sum(1)
        assert torch.equal(own, expected.to(own.dtype))


def test_an_adapter_takes_its_features_of_clicks_along(of_clicks: Ranker, make_batch: Callable[..., Batch]):
    """Extracted and attached again, the domain scores the same: its event values travel with its items."""
    batch = make_batch(10, domain=2)
    before = of_clicks(batch)
    adapter = adapters.extract(of_clicks, 2)
    del of_clicks.domains[2]
    assert adapters.attach(of_clicks, adapter) == 2
    assert torch.equal(of_clicks.double().eval()(batch), before)
