"""Bridges: who is mapped and from what, each mechanism by hand, and cold users better known than by the item mean."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.baselines.bridges import CMF, EMCDR, PTUPCDR, TMCDR, MetaStep, ShareWeigher, fit_map, user_map
from benchmarks.baselines.factors import BridgeConfig, Interleaved, OnlySharedUsers, TrainingSet, latest_liked
from benchmarks.baselines.metric_bridge import SSCDR, Points, in_unit_ball, triplet
from models.batch import Batch, Events
from models.training.loop import TrainConfig

USERS, ITEMS = 80, 25
CONFIG = BridgeConfig(
    users=USERS, source_items=ITEMS, target_items=ITEMS, width=4, source_mean=3.0, target_mean=3.0, history=6
)
EVERY = [CMF, EMCDR, PTUPCDR, TMCDR, SSCDR]
COLD = np.arange(60, USERS)


class Batches:
    """Rows in a fixed order of batches, shuffled by epoch."""

    def __init__(self, batch, size=64):
        self.whole, self.size = batch, size

    def __len__(self):
        return math.ceil(len(self.whole) / self.size)

    def batches(self, epoch, start=0):
        order = torch.randperm(len(self.whole), generator=torch.Generator().manual_seed(epoch))
        for number in range(start, len(self)):
            yield self.whole.rows(order[number * self.size : (number + 1) * self.size])


def rows(user, item, label, slot, history):
    count = len(user)
    none = torch.zeros(count, 0, dtype=torch.long)
    return Batch(
        domain=torch.full((count,), slot),
        user=torch.as_tensor(user),
        item=torch.as_tensor(item),
        item_features=none,
        user_features=none,
        context=none,
        time=torch.ones(count, dtype=torch.long),
        label=torch.as_tensor(label, dtype=torch.float32),
        weight=torch.ones(count),
        offset=torch.zeros(count),
        lifelong=replace(
            history,
            row=torch.as_tensor(user),
            start=torch.zeros(count, dtype=torch.long),
            stop=torch.full((count,), history.item.shape[1]),
        ),
    )


@pytest.fixture(scope="module")
def world():
    """A user's bias and their group's liking of half the items hold in both domains; users from 60 on are cold."""
    generator = np.random.default_rng(0)
    taste, group = generator.normal(0, 0.5, USERS), np.arange(USERS) % 2
    user, item = (part.ravel() for part in np.meshgrid(np.arange(1, USERS), np.arange(1, ITEMS), indexing="ij"))
    quality = generator.normal(0, 0.4, (2, ITEMS))
    matched = np.where(group[user] == item % 2, 0.8, -0.8)
    ratings = [
        3.0 + taste[user] + matched + quality[domain][item] + generator.normal(0, 0.2, len(user)) for domain in (0, 1)
    ]
    chosen = [generator.random(len(user)) < 0.5 for _ in (0, 1)]
    stored = np.zeros((USERS, 12), int), np.zeros((USERS, 12))
    for one in range(1, USERS):
        events = np.flatnonzero(chosen[0] & (user == one))[:12]
        stored[0][one, : len(events)], stored[1][one, : len(events)] = item[events], ratings[0][events]
    zeros = torch.zeros(USERS, 12, dtype=torch.long)
    nobody = torch.zeros(0, dtype=torch.long)
    history = Events(
        torch.as_tensor(stored[0]), zeros, torch.as_tensor(stored[1]).float(), zeros, nobody, nobody, nobody
    )
    cold = np.isin(user, COLD)
    return {
        "source": rows(user[chosen[0]], item[chosen[0]], ratings[0][chosen[0]], 0, history),
        "target": rows(
            user[chosen[1] & ~cold], item[chosen[1] & ~cold], ratings[1][chosen[1] & ~cold], 1, history
        ),
        "cold": rows(user[cold], item[cold], ratings[1][cold], 1, history),
    }  # fmt: skip


def fitted(kind, world, epochs=15, **options):
    torch.manual_seed(0)
    model = kind(CONFIG, **options)
    config = TrainConfig(epochs=epochs, learning_rate=1e-2, task="rating", seed=1)
    model.fit(Batches(world["source"]), Batches(world["target"]), config=config)
    return model.eval()


@pytest.fixture(scope="module")
def models(world):
    return {kind: fitted(kind, world) for kind in EVERY}


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.slow
class TestEveryBridge:
    def test_cold_users_are_better_known_than_by_the_item_alone(self, kind, models, world):
        cold = world["cold"]
        with torch.no_grad():
            error = (models[kind](cold) - cold.label).square().mean().sqrt()
        by_item = torch.stack([world["target"].label[world["target"].item == i].mean() for i in range(1, ITEMS)])
        assert error < 0.95 * (by_item[cold.item - 1] - cold.label).square().mean().sqrt()

    def test_permuted_rows_and_batch_mates_change_nothing(self, kind, models, world):
        both = [world["cold"].rows(torch.arange(30)), world["source"].rows(torch.arange(30))]
        model = models[kind]
        for batch in both:
            order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
            torch.testing.assert_close(model(batch.rows(order)), model(batch)[order])
            torch.testing.assert_close(model(batch.rows(torch.tensor([7]))), model(batch)[7:8])

    def test_padding_never_changes_a_score(self, kind, models, world):
        batch = world["cold"].rows(torch.arange(40))
        events = replace(batch.lifelong, stop=torch.full((40,), 5), item=batch.lifelong.item.clone())
        events = replace(events, value=events.value.clone())
        before = models[kind](replace(batch, lifelong=events))
        events.item[:, 5:] = 3
        events.value[:, 5:] = 5.0
        assert torch.equal(models[kind](replace(batch, lifelong=events)), before)

    def test_a_user_whom_nobody_knows_gets_the_item_alone(self, kind, models, world):
        batch = replace(world["cold"].rows(torch.arange(3)), user=torch.zeros(3, dtype=torch.long))
        model = models[kind]
        if kind is not SSCDR:
            expected = model.target.mean + model.target.item_bias(batch.item)[:, 0]
            torch.testing.assert_close(model(batch), expected)
        assert torch.isfinite(model(batch)).all()

    def test_the_same_seed_gives_the_same_scores(self, kind, world):
        first, second = (fitted(kind, world, epochs=1)(world["cold"]) for _ in range(2))
        assert torch.equal(first, second)

    def test_only_users_of_the_training_rows_count_as_known(self, kind, models):
        model = models[kind]
        assert not model.target.seen[COLD].any()
        assert model.source.seen[1:].all()
        assert model.shared_users().tolist() == list(range(1, 60))

    def test_factors_are_trainable_again_after_the_fit(self, kind, models):
        assert all(part.requires_grad for part in models[kind].parameters())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [EMCDR, PTUPCDR, TMCDR, SSCDR])
def test_warm_users_keep_their_own_vector_and_cold_users_are_mapped(kind, models, world):
    model = models[kind]
    warm, cold = world["target"].rows(torch.arange(5)), world["cold"].rows(torch.arange(5))
    torch.testing.assert_close(model.user_vectors(warm), model.target.user(warm.user))
    torch.testing.assert_close(model.user_vectors(cold), model.mapped(cold))


@pytest.mark.parametrize("kind", [PTUPCDR, TMCDR])
def test_the_mapping_stage_leaves_all_factors_bit_equal(kind, world):
    torch.manual_seed(0)
    model = kind(CONFIG)
    config = TrainConfig(epochs=1, learning_rate=1e-2, task="rating")
    model.remember_users(Batches(world["source"]), Batches(world["target"]))
    given = TrainingSet(Batches(world["source"]), Batches(world["target"]), {}, config)
    model.train_factors(given)
    before = {n: p.clone() for n, p in model.named_parameters()}
    model.stage = "map"
    for factors in (model.source, model.target):
        factors.requires_grad_(False)
    model.train_mapping(given)
    for name, part in model.named_parameters():
        own = name.startswith(("source.", "target."))
        assert torch.equal(part, before[name]) == own, name


def test_emcdr_solves_least_squares_over_shared_users_only(models):
    model = models[EMCDR]
    shared = np.arange(1, 60)
    x, y = (f.users.weight.detach().numpy()[shared].astype(float) for f in (model.source, model.target))
    expected = np.linalg.lstsq(x, y, rcond=None)[0].T
    assert model.map.weight.detach().numpy() == pytest.approx(expected, abs=0.05 * np.abs(expected).max())


def test_emcdr_with_a_network_learns_what_no_matrix_can():
    torch.manual_seed(0)
    from_source = torch.randn(300, 3)
    own = from_source.abs()
    network = user_map("mlp", 3)
    fit_map(network, from_source, own, seed=0)
    matrix = torch.linalg.lstsq(from_source, own).solution
    assert (network(from_source) - own).square().mean() < 0.2 * (from_source @ matrix - own).square().mean()


def test_ptupcdr_by_hand():
    torch.manual_seed(0)
    model = PTUPCDR(replace(CONFIG, biases=False)).eval()
    model.source.seen[5] = True
    torch.nn.init.normal_(model.source.items.weight)
    history = Events(
        item=torch.tensor([[3, 4, 5, 6]]),
        action=torch.zeros(1, 4, dtype=torch.long),
        value=torch.tensor([[5.0, 1.0, 4.0, 5.0]]),  # the second is not liked, the last is not yet seen
        time=torch.zeros(1, 4, dtype=torch.long),
        row=torch.tensor([0]),
        start=torch.tensor([0]),
        stop=torch.tensor([3]),
    )
    batch = rows([5], [7], [4.0], 1, replace(history, item=history.item.expand(6, 4)))
    batch = replace(batch, lifelong=history)
    v = model.source.items.weight[[3, 5]]
    p = torch.softmax(model.attend(v)[:, 0], 0) @ v
    u = model.bridge(p).view(4, 4) @ model.source.users.weight[5]
    torch.testing.assert_close(model.characteristic(batch)[0], p)
    torch.testing.assert_close(model(batch)[0], u @ model.target.items.weight[7] + model.target.mean)


def test_a_user_who_liked_nothing_gets_the_common_bridge(models, world):
    model, batch = models[PTUPCDR], world["cold"].rows(torch.arange(2))
    batch = replace(batch, lifelong=replace(batch.lifelong, stop=torch.zeros(2, dtype=torch.long)))
    assert model.characteristic(batch).abs().sum() == 0
    common = model.bridge(torch.zeros(CONFIG.width)).view(CONFIG.user_width, -1)
    torch.testing.assert_close(model.mapped(batch), model.source.user(batch.user) @ common.T)


def test_the_latest_liked_events_are_chosen_among_the_liked_ones():
    events = Events(
        item=torch.tensor([[1, 2, 3, 4, 5]]),
        action=torch.zeros(1, 5, dtype=torch.long),
        value=torch.tensor([[5.0, 5.0, 1.0, 5.0, 5.0]]),
        time=torch.zeros(1, 5, dtype=torch.long),
        row=torch.tensor([0, 0]),
        start=torch.tensor([0, 3]),
        stop=torch.tensor([4, 3]),
    )
    items, real = latest_liked(events, 3.0, 2)
    assert items[0].tolist() == [4, 2]
    assert real.tolist() == [[True, True], [False, False]]


def test_tmcdr_follows_the_query_groups_gradient_at_the_adapted_weights():
    torch.manual_seed(0)
    config = replace(CONFIG, biases=False, width=1, target_mean=0.0)
    model = TMCDR(config, inner_step=0.5)
    with torch.no_grad():
        model.source.users.weight.fill_(1.0)
        model.target.items.weight.fill_(1.0)
        model.source.seen.fill_(True)
        model.map.weight.fill_(1.0)
    history = Events(*(torch.zeros(3, 1, dtype=torch.long) for _ in range(4)), *(torch.zeros(3) for _ in range(3)))
    batch = rows([1, 2], [1, 1], [3.0, 3.0], 1, history)
    step = MetaStep(model, "rating")
    losses = set()
    for seed in range(8):
        torch.manual_seed(seed)
        model.zero_grad()
        loss = step.auxiliary_loss(batch)
        loss.backward()
        losses.add((round(loss.item(), 4), round(model.map.weight.grad.item(), 4)))
    # Support user: d/dφ (φ-3)² = -4, so φ' = 1 + 0.5·4 = 3 and the query user's loss and gradient are 0.
    # Both in query: loss (1-3)² = 4, gradient -4. Both in support: there is no query, all 0.
    assert losses == {(0.0, 0.0), (4.0, -4.0)}


def test_cmf_weighs_the_domains_by_its_share(world):
    batch = Batch(**{**world["source"].rows(torch.arange(2)).__dict__, "domain": torch.tensor([0, 1])})
    assert ShareWeigher(0.2, 1).weigh(batch, None).tolist() == pytest.approx([0.4, 1.6])
    assert ShareWeigher(CMF(CONFIG).source_share, 1).weigh(batch, None).tolist() == [1.0, 1.0]


def test_a_cmf_user_of_the_source_alone_is_scored_by_the_one_shared_vector(models, world):
    model, batch = models[CMF], world["cold"].rows(torch.arange(4))
    torch.testing.assert_close(model.user_vectors(batch), model.source.users.weight[batch.user])


def test_points_lie_in_the_unit_ball_and_short_ones_stay():
    points = in_unit_ball(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    torch.testing.assert_close(points, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))


def test_a_triplet_costs_what_the_near_item_lacks_of_the_margin():
    anchor, near, far = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.2]])
    assert triplet(anchor, near, far, 0.5).item() == pytest.approx(0.5 + 1.0 - 1.44)
    assert triplet(anchor, near, 2 * far, 0.5).item() == 0.0


def test_only_liked_rows_pull_points_together(world):
    model = SSCDR(CONFIG)
    disliked = replace(world["target"].rows(torch.arange(9)), label=torch.ones(9))
    assert Points(model, model.target).auxiliary_loss(disliked).item() == 0.0


def test_a_cold_user_of_sscdr_stands_between_his_point_and_his_items(world):
    torch.manual_seed(0)
    model, batch = SSCDR(CONFIG), world["cold"].rows(torch.arange(1))
    model.source.seen[:] = True
    items, liked = latest_liked(batch.lifelong, 3.0, CONFIG.history)
    middle = model.carried(model.source.items(items[liked])).mean(0)
    own = model.carried(model.source.users.weight[batch.user])[0]
    torch.testing.assert_close(model.mapped(batch)[0], (own + middle) / 2)


def test_interleaved_batches_resume_where_they_were_left(world):
    both = Interleaved(Batches(world["source"]), Batches(world["target"]), seed=3)
    whole = [(b.domain[0].item(), b.user.tolist()) for b in both.batches(1)]
    assert len(whole) == len(both)
    assert [(b.domain[0].item(), b.user.tolist()) for b in both.batches(1, start=5)] == whole[5:]
    domains = [domain for domain, _ in whole]
    assert domains.count(0) == len(Batches(world["source"]))
    assert domains != sorted(domains)


def test_rows_of_unshared_users_weigh_nothing_in_the_mapping(world):
    data = OnlySharedUsers(Batches(world["target"]), torch.tensor([3, 4]), USERS)
    for batch in data.batches(0):
        assert torch.equal(batch.weight > 0, torch.isin(batch.user, torch.tensor([3, 4])))


def test_a_bridge_without_shared_users_says_so(world):
    torch.manual_seed(0)
    alone = replace(world["source"], user=world["source"].user % 2 + 70)
    with pytest.raises(ValueError, match="both domains"):
        EMCDR(CONFIG).fit(
            Batches(alone), Batches(world["target"]), config=TrainConfig(task="rating", learning_rate=1e-2)
        )
