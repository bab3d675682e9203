"""The self-supervised baselines: each loss by hand, and what an auxiliary task must leave alone."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.baselines.feature_contrast import (
    AT4CTR,
    CL4CTR,
    SSL,
    PoolNCE,
    alignment,
    distinct_items,
    mutual_information,
    uniformity,
)
from benchmarks.baselines.self_supervised import (
    DSS,
    SAC,
    SQN,
    BERT4Rec,
    CL4SRec,
    CLRec,
    WithAuxiliary,
    dss_loss,
    nt_xent,
)
from benchmarks.baselines.sequences import (
    Pool,
    SequenceEncoder,
    Sequences,
    equal,
    info_nce,
    last,
    latest_row_of_each_user,
    pooled,
    sides,
    some,
)
from models.batch import Batch, Events
from models.layers.pyramid import PyramidConfig
from models.ranker.config import DomainConfig, RankerConfig
from models.ranker.network import Ranker

D = 8
FIELDS = (5, 4)
ON_SEQUENCES = [DSS, BERT4Rec, SQN, SAC, CLRec, CL4SRec]
EVERY = [*ON_SEQUENCES, SSL, AT4CTR, CL4CTR, PoolNCE]


def codes(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, size, (rows,), generator=generator) for size in FIELDS], 1)


def a_backbone():
    torch.manual_seed(0)
    config = RankerConfig(
        source_items=30,
        item_fields=FIELDS,
        user_fields=(3,),
        context_fields=(4,),
        actions=3,
        width=D,
        architecture="lcn",
        pyramid=PyramidConfig(k1=6, k2=4, heads=2),
        head=(12, 6),
    )
    ranker = Ranker(config, codes(30, 0))
    ranker.add_domain(DomainConfig(items=0))
    slot = ranker.add_domain(DomainConfig(items=15), codes(15, 1))
    torch.nn.init.normal_(ranker.owned(slot).items.rows.weight, std=0.05)
    return ranker


def task_of(kind):
    torch.manual_seed(1)
    return kind(D, codes(30, 0)) if kind is SSL else kind(D)


def some_batch(rows=16, users=9, seed=0, slots=(1, 2)):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, top, *shape):
        return torch.randint(low, top, shape, generator=generator)

    def events(items, length):
        start = draw(0, 2, rows)
        return Events(
            item=draw(1, items, 6, length),
            action=draw(0, 3, 6, length),
            value=torch.rand(6, length, generator=generator),
            time=torch.arange(length).expand(6, length) * 10**7,
            row=draw(0, 6, rows),
            start=start,
            stop=start + draw(3, length - 1, rows),
        )

    return Batch(
        domain=draw(*slots, rows),
        user=draw(1, users, rows),
        item=draw(1, 15, rows),
        item_features=torch.stack([draw(0, size, rows) for size in FIELDS], 1),
        user_features=draw(0, 3, rows, 1),
        context=draw(0, 4, rows, 1),
        time=draw(10**9, 2 * 10**9, rows),
        label=draw(0, 2, rows).float(),
        weight=torch.ones(rows),
        offset=torch.zeros(rows),
        lifelong=events(30, 12),
        short_source=events(30, 9),
        short_target=events(15, 8),
    )


def a_side(lengths, items=None, width=D, seed=0):
    torch.manual_seed(seed)
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    identity = torch.randint(1, 9, mask.shape) if items is None else torch.tensor(items)
    table = torch.randn(100, width)
    users = torch.arange(len(lengths)) + 1
    return Sequences(table[identity], mask, identity * mask, torch.ones_like(identity), users, table.__getitem__)


@pytest.mark.parametrize("kind", EVERY)
class TestEveryTask:
    def test_scores_are_the_backbones_own(self, kind):
        backbone, batch = a_backbone().eval(), some_batch()
        model = WithAuxiliary(backbone, task_of(kind)).eval()
        assert torch.equal(model(batch), backbone(batch))
        assert torch.equal(model.probability(batch), backbone.probability(batch))

    def test_the_loss_is_finite_and_teaches_the_backbones_items(self, kind):
        model, batch = WithAuxiliary(a_backbone(), task_of(kind)), some_batch()
        loss = model.auxiliary_loss(batch)
        assert loss.dim() == 0
        assert torch.isfinite(loss)
        loss.backward()
        gradients = [p.grad for p in model.backbone.parameters() if p.grad is not None]
        assert all(torch.isfinite(g).all() for g in gradients)
        on_source = model.backbone.embeddings.source_items.rows.weight.grad
        on_target = model.backbone.owned(1).items.rows.weight.grad
        if kind not in (SSL, CL4CTR):  # those two read candidates alone
            assert on_source.abs().sum() > 0
        assert on_target.abs().sum() > 0

    def test_every_parameter_of_the_task_learns(self, kind):
        task, backbone = task_of(kind), a_backbone()
        for seed in range(6):  # coins are tossed
            torch.manual_seed(seed)
            task(backbone, some_batch(seed=seed)).backward()
        assert [name for name, part in task.named_parameters() if part.grad is None] == []

    def test_padding_and_the_future_never_change_the_loss(self, kind):
        task, backbone, batch = task_of(kind), a_backbone(), some_batch()
        losses = []
        for _ in range(2):
            torch.manual_seed(3)
            losses.append(task.eval()(backbone, batch))
            for events in (batch.short_source, batch.short_target):
                position = torch.arange(events.item.shape[1])
                unseen = torch.ones_like(events.item, dtype=torch.bool)
                for row in range(len(batch)):
                    seen = (position >= events.start[row]) & (position < events.stop[row])
                    unseen[events.row[row]] &= ~seen
                events.item[unseen] = 3
        torch.testing.assert_close(losses[0], losses[1])

    def test_a_batch_without_histories_or_clicks_is_survived(self, kind):
        batch = some_batch()
        for events in (batch.short_source, batch.short_target):
            events.stop.copy_(events.start)
        loss = task_of(kind)(a_backbone(), replace(batch, label=torch.zeros(16)))
        assert loss is None or torch.isfinite(loss)

    def test_mixed_domains_are_legal(self, kind):
        loss = task_of(kind)(a_backbone(), some_batch(slots=(0, 2)))
        assert torch.isfinite(loss)


class TestSequences:
    def test_a_user_counts_once_by_their_latest_row(self):
        batch = some_batch(rows=5)
        batch = replace(batch, user=torch.tensor([7, 3, 7, 3, 5]), time=torch.tensor([1, 9, 2, 4, 0]))
        assert latest_row_of_each_user(batch).tolist() == [1, 4, 2]

    def test_sequences_hold_what_each_row_sees_oldest_first_without_unknown_items(self):
        batch = some_batch(rows=1)
        events = batch.short_source
        events.item[events.row, 1:6] = torch.tensor([4, 0, 6, 7, 8])
        batch = replace(batch, short_source=replace(events, start=torch.tensor([1]), stop=torch.tensor([5])))
        backbone = a_backbone()
        source = sides(backbone, batch)[1]
        assert source.identity[0][source.mask[0]].tolist() == [4, 6, 7]
        torch.testing.assert_close(source.vectors[0, :3], backbone.embeddings.stored(torch.tensor([4, 6, 7])))

    def test_equal_numbers_of_different_domains_are_different_items(self):
        batch = some_batch(rows=2)
        batch = replace(batch, user=torch.tensor([1, 2]), domain=torch.tensor([0, 1]))
        shared = replace(
            batch.short_target, row=torch.tensor([0, 0]), start=0 * batch.domain, stop=0 * batch.domain + 3
        )
        target = sides(a_backbone(), replace(batch, short_target=shared))[0]
        assert not (target.identity[0][:3] == target.identity[1][:3]).any()

    def test_an_item_is_looked_up_again_by_its_name(self):
        for side in sides(a_backbone(), some_batch(slots=(0, 2))):
            torch.testing.assert_close(side.look_up(side.identity[side.mask]), side.vectors[side.mask])

    def test_a_causal_encoder_sees_no_later_event_and_no_padding(self):
        torch.manual_seed(0)
        side = a_side([4, 2])
        for causal in (True, False):
            encoder = SequenceEncoder(D, causal=causal).eval()
            before = encoder(side.vectors, side.mask)
            changed = side.vectors.clone()
            changed[1, 2:] = 50.0
            changed[0, 3] = 50.0
            after = encoder(changed, side.mask)
            torch.testing.assert_close(after[1, :2], before[1, :2])
            assert torch.allclose(after[0, :3], before[0, :3]) == causal

    def test_an_empty_sequence_gives_numbers(self):
        out = SequenceEncoder(D)(torch.zeros(1, 3, D), torch.zeros(1, 3, dtype=torch.bool))
        assert torch.isfinite(out).all()

    def test_last_and_mean_read_real_events_alone(self):
        side = a_side([3, 1])
        assert torch.equal(last(side.vectors, side.mask), side.vectors[[0, 1], [2, 0]])
        torch.testing.assert_close(pooled(side.vectors, side.mask)[0], side.vectors[0, :3].mean(0))
        assert pooled(side.vectors, torch.zeros_like(side.mask)).abs().sum() == 0

    def test_a_pool_holds_each_item_once_and_knows_its_place(self):
        side = a_side([3, 2], [[4, 5, 4], [5, 6, 9]])
        pool = Pool.of(side, 100, keep=side.mask)
        assert len(pool.vectors) == 3
        torch.testing.assert_close(pool.vectors[pool.place[side.mask]], side.vectors[side.mask])

    def test_a_small_pool_keeps_what_must_be_in_it(self):
        side = a_side([3, 2], [[4, 5, 7], [8, 6, 9]])
        keep = torch.zeros_like(side.mask)
        keep[0, 1] = True
        for seed in range(5):
            torch.manual_seed(seed)
            pool = Pool.of(side, 2, keep=keep)
            assert len(pool.vectors) == 2
            torch.testing.assert_close(pool.vectors[pool.place[keep]], side.vectors[keep])

    def test_some_positions_are_drawn_among_the_true_ones(self):
        mask = torch.tensor([[True, False, True], [True, True, False]])
        assert torch.equal(some(mask, 4), mask)
        drawn = some(mask, 2)
        assert drawn.sum() == 2
        assert not (drawn & ~mask).any()


class TestLosses:
    def test_info_nce_by_hand(self):
        a = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
        b = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        cos = torch.tensor([[1.0, 0.5**0.5], [0.0, 0.5**0.5]])
        expected = F.cross_entropy(cos / 0.5, torch.tensor([0, 1]))
        torch.testing.assert_close(info_nce(a, b, temperature=0.5), expected)

    def test_info_nce_takes_no_equal_item_for_a_negative(self):
        a, b = torch.randn(3, 4), torch.randn(3, 4)
        same = equal(torch.tensor([5, 5, 6]))
        cos = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
        first = -(cos[0, 0] - torch.logsumexp(cos[0, [0, 2]], 0))
        second = -(cos[1, 1] - torch.logsumexp(cos[1, [1, 2]], 0))
        third = -(cos[2, 2] - torch.logsumexp(cos[2], 0))
        torch.testing.assert_close(info_nce(a, b, temperature=1.0, same=same), (first + second + third) / 3)

    def test_nt_xent_of_two_users_by_hand(self):
        one, other = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        # each view: its partner has cosine 1, the two views of the other user 0
        loss = nt_xent(one, other, temperature=1.0, user=torch.tensor([1, 2]))
        assert loss.item() == pytest.approx(math.log(math.e + 2) - 1)

    def test_views_of_one_user_are_no_negatives(self):
        views = torch.randn(3, 4)
        loss = nt_xent(views, views, temperature=1.0, user=torch.tensor([1, 1, 1]))
        assert loss.item() == pytest.approx(0.0, abs=1e-6)

    def test_dss_by_hand_and_only_the_lowest_terms_count(self):
        first, second = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
        terms = []
        for n in range(3):
            for k in range(2):
                crowd = torch.stack([first[n, k] @ second[m, j] / 2 for m in range(3) for j in range(2)])
                terms.append(torch.logsumexp(crowd, 0) - first[n, k] @ second[n, k] / 2)
        ordered = torch.stack(terms).sort().values
        torch.testing.assert_close(dss_loss(first, second, 1.0), ordered.mean())
        torch.testing.assert_close(dss_loss(first, second, 0.5), ordered[:3].mean())

    def test_alignment_is_the_mean_squared_distance_of_pairs(self):
        x = torch.randn(5, 3, 4)
        pairs = (x[:, None] - x[None]).square().sum(-1).mean()
        torch.testing.assert_close(alignment(x), pairs)

    def test_uniformity_is_the_mean_cosine_of_different_fields(self):
        x = torch.randn(5, 3, 4)
        z = F.normalize(x, dim=-1)
        cosines = [(z[:, f] @ z[:, g].T).mean() for f in range(3) for g in range(3) if f != g]
        torch.testing.assert_close(uniformity(x), torch.stack(cosines).mean())
        assert uniformity(x[:, :1]).item() == 0.0

    def test_the_q_target_is_reward_plus_discounted_future(self):
        entropy, value, wanted = torch.tensor([2.0]), torch.tensor([0.5], requires_grad=True), torch.tensor([1.5])
        assert SQN(D).total(entropy, value, wanted).item() == 3.0
        critic = SAC(D).total(entropy, value, wanted)
        assert critic.item() == 2.0
        critic.backward()
        assert value.grad.item() == -2.0  # of the squared error alone: the actor's weight is not differentiated

    def test_rewards_follow_the_kind_of_event(self):
        torch.manual_seed(0)
        side = a_side([3, 3])
        task = SQN(D, rewards=(0.2, 0.2, 1.0), discount=0.0).eval()
        losses = []
        for kind in (1, 2):
            torch.manual_seed(5)
            losses.append(task.on_side(replace(side, action=torch.full_like(side.action, kind)), 0).item())
        assert losses[0] != losses[1]


class TestWays:
    def test_bert4rec_hides_some_events_and_never_all(self):
        side = a_side([2, 5, 9])
        task = BERT4Rec(D)
        share = []
        for seed in range(200):
            torch.manual_seed(seed)
            asked = task.draw(side)
            assert not (asked & ~side.mask).any()
            assert (asked.sum(1) >= 1).all()
            assert (asked.sum(1) < side.length).all()
            share.append(asked[2].float().sum().item() / 9)
        assert sum(share) / 200 == pytest.approx(0.2, abs=0.04)

    def test_a_crop_is_a_run_of_the_sequence(self):
        side = a_side([5, 3], [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])
        number = side.identity.float()[..., None].expand(-1, -1, D)
        vectors, mask = CL4SRec(D).cropped(replace(side, vectors=number))
        assert mask.sum(1).tolist() == [3, 1]
        run = vectors[0, :3, 0]
        assert (run[1:] - run[:-1]).tolist() == [1.0, 1.0]
        assert (vectors[1, 0, 0] > 0).item()

    def test_a_reordering_moves_a_run_alone_and_keeps_every_event(self):
        side = a_side([5, 3], [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]])
        number = side.identity.float()[..., None].expand(-1, -1, D)
        changed = set()
        for seed in range(40):
            torch.manual_seed(seed)
            vectors, mask = CL4SRec(D, reorder=0.4).reordered(replace(side, vectors=number))
            row = vectors[0, :, 0].tolist()
            assert sorted(row) == [1, 2, 3, 4, 5]
            assert vectors[1, :, 0].tolist() == [6, 7, 8, 0, 0]
            moved = [i for i in range(5) if row[i] != i + 1]
            assert len(moved) in (0, 2)
            assert not moved or moved[1] == moved[0] + 1
            changed.add(tuple(row))
        assert len(changed) > 2
        assert torch.equal(mask, side.mask)

    def test_masked_events_are_blank_in_their_places(self):
        side = a_side([4, 2])
        task = CL4SRec(D)
        vectors, mask = task.masked(side)
        blank = (vectors == task.blank).all(-1)
        assert blank.sum(1).tolist() == [2, 1]
        assert torch.equal(vectors[~blank], side.vectors[~blank])
        assert torch.equal(mask, side.mask)

    def test_the_queue_is_first_in_first_out_and_kept_apart_for_each_side(self):
        task = CLRec(D, queue=5).train()
        side = a_side([3, 3, 3], [[1, 2, 3], [1, 2, 4], [1, 2, 5]])
        task.on_side(side, 0)
        assert task.filled.tolist() == [3, 0]
        assert task.identity[0].tolist() == [3, 4, 5, -1, -1]
        task.on_side(replace(side, identity=side.identity + 10), 0)
        assert task.identity[0].tolist() == [13, 14, 15, 3, 4]
        assert task.identity[1].tolist() == [-1] * 5
        assert {"identity", "filled"} <= set(task.state_dict())

    def test_the_queue_gives_negatives_and_rests_in_evaluation(self):
        side = a_side([3, 3], [[1, 2, 3], [1, 2, 4]])
        task = CLRec(D).eval()
        alone = task.on_side(side, 0)
        assert task.filled.tolist() == [0, 0]
        task.remember(0, torch.arange(20, 26))
        assert task.on_side(side, 0) > alone
        task.identity[0, :6] = 3  # the first row's own item cannot be its negative
        first = replace(side.of(torch.tensor([0])))
        assert task.on_side(first, 0).item() == pytest.approx(0.0, abs=1e-6)

    def test_item_views_are_complementary_and_hide_what_is_correlated(self):
        first = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(0))
        other = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(1))
        task = SSL(D, torch.stack([first, other, first], 1))
        for seed in range(30):
            torch.manual_seed(seed)
            hidden = task.draw(torch.device("cpu"))
            assert hidden.sum() == 2
            if not hidden[0]:
                assert hidden.tolist() == [False, True, False, True]

    def test_mutual_information_by_hand(self):
        table = mutual_information(torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]))
        two, four = math.log(2), math.log(4)
        torch.testing.assert_close(
            table, torch.tensor([[four, two, two], [two, two, 0], [two, 0, two]]), atol=1e-6, rtol=0
        )

    def test_item_towers_need_a_field_beside_the_id(self):
        with pytest.raises(ValueError, match="field"):
            SSL(D, torch.zeros(5, 0, dtype=torch.long))

    def test_each_candidate_counts_once(self):
        batch = some_batch(rows=4)
        batch = replace(batch, item=torch.tensor([3, 3, 0, 5]))
        tokens, identity = distinct_items(a_backbone(), batch)
        assert len(identity) == 2
        assert tokens.shape == (2, 3, D)

    def test_only_clicked_rows_match_users_and_items(self):
        task, backbone = AT4CTR(D).eval(), a_backbone()
        batch = some_batch(users=60)
        clicked = batch.rows(batch.label > 0.5)
        torch.testing.assert_close(task.user_item(backbone, batch), task.user_item(backbone, clicked))
        assert task.user_item(backbone, replace(batch, label=torch.zeros(16))) is None

    def test_pools_pair_each_users_target_with_his_own_source(self):
        backbone, batch = a_backbone(), some_batch()
        target, source = sides(backbone, batch)
        one, other = pooled(target.vectors, target.mask), pooled(source.vectors, source.mask)
        cos = F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T / 0.1
        diagonal = torch.arange(len(cos))
        expected = (F.cross_entropy(cos, diagonal) + F.cross_entropy(cos.T, diagonal)) / 2
        torch.testing.assert_close(PoolNCE(D)(backbone, batch), expected)
