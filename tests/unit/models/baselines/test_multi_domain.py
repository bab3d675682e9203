"""The multi-domain baselines: hand-computed cases, and what must hold for all of them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.baselines.inputs import BaselineConfig, Inputs, latest, masked_softmax
from models.baselines.multi_domain import (
    PLE,
    STAR,
    CustomizedGate,
    DNNMulti,
    DNNSingle,
    MMoE,
    PartitionedNorm,
    SharedBottom,
    StarLinear,
)
from models.batch import Batch, Events
from models.layers.wide import plain_features

CONFIG = BaselineConfig(
    source_items=20,
    domain_items=(0, 12, 9),
    item_fields=(5, 4),
    user_fields=(3,),
    context_fields=(4,),
    actions=3,
    users=10,
    width=8,
    hidden=(16, 12, 6),
    user_dropout=0.0,
)
EVERY = [DNNSingle, DNNMulti, SharedBottom, MMoE, PLE, STAR]


def item_codes(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, size, (CONFIG.item_rows,), generator=generator) for size in (5, 4)], 1)


def some_events(rows, stored, length, items, generator):
    start = torch.randint(0, length // 2, (rows,), generator=generator)
    stop = start + torch.randint(0, length // 2 + 1, (rows,), generator=generator)
    return Events(
        item=torch.randint(0, items, (stored, length), generator=generator),
        action=torch.randint(0, 3, (stored, length), generator=generator),
        value=torch.rand(stored, length, generator=generator),
        time=torch.arange(length).expand(stored, length) * 1_000_000,
        row=torch.randint(0, stored, (rows,), generator=generator),
        start=start,
        stop=stop,
    )


def some_batch(rows=24, seed=0, domain=None):
    generator = torch.Generator().manual_seed(seed)

    def codes(top, *shape):
        return torch.randint(0, top, shape, generator=generator)

    return Batch(
        domain=codes(3, rows) if domain is None else torch.full((rows,), domain),
        user=codes(10, rows),
        item=codes(9, rows),
        item_features=torch.stack([codes(5, rows), codes(4, rows)], 1),
        user_features=codes(3, rows, 1),
        context=codes(4, rows, 1),
        time=torch.full((rows,), 10**9),
        label=codes(2, rows).float(),
        weight=torch.ones(rows),
        offset=torch.rand(rows, generator=generator),
        lifelong=some_events(rows, 5, 16, 20, generator),
        short_source=some_events(rows, 5, 8, 20, generator),
        short_target=some_events(rows, 5, 8, 9, generator),
    )


def built(kind, seed=0):
    torch.manual_seed(seed)
    model = kind(CONFIG, item_codes())
    for module in model.modules():  # gates start at zero: make them say something
        if isinstance(module, nn.Linear) and module.bias is None:
            nn.init.normal_(module.weight)
    return model


@pytest.mark.parametrize("kind", EVERY)
class TestEveryBaseline:
    def test_padding_and_the_future_never_change_a_score(self, kind):
        model, batch = built(kind).eval(), some_batch()
        score = model(batch)
        generator = torch.Generator().manual_seed(9)
        for name in ("short_source", "short_target"):
            events = getattr(batch, name)
            for position in range(events.item.shape[1]):
                seen = ((events.start <= position) & (position < events.stop)).nonzero()[:, 0]
                unseen = torch.ones(5, dtype=torch.bool)
                unseen[events.row[seen]] = False
                events.item[unseen, position] = torch.randint(0, 9, (int(unseen.sum()),), generator=generator)
                events.action[unseen, position] = 2
                events.value[unseen, position] = float("nan")
        assert torch.equal(model(batch), score)

    def test_permuted_rows_give_permuted_scores(self, kind):
        model, batch = built(kind).eval(), some_batch()
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(model(batch.rows(order)), model(batch)[order])

    def test_a_score_in_evaluation_does_not_depend_on_batch_mates(self, kind):
        model, batch = built(kind), some_batch()
        model(batch)  # moving averages have seen something
        model.eval()
        whole = model(batch)
        alone = torch.cat([model(batch.rows(torch.tensor([row]))) for row in range(len(batch))])
        torch.testing.assert_close(alone, whole)

    def test_users_without_any_history_get_a_finite_score(self, kind):
        batch = some_batch()
        for name in ("lifelong", "short_source", "short_target"):
            getattr(batch, name).stop.copy_(getattr(batch, name).start)
        assert torch.isfinite(built(kind).eval()(batch)).all()

    def test_the_prior_is_added_to_the_score(self, kind):
        model, batch = built(kind).eval(), some_batch()
        score = model(batch)
        batch.offset.add_(2.0)
        torch.testing.assert_close(model(batch), score + 2.0)

    def test_every_parameter_that_a_full_batch_may_use_gets_a_gradient(self, kind):
        model = built(kind)
        model(some_batch(rows=200)).square().sum().backward()
        missing = [name for name, part in model.named_parameters() if part.grad is None]
        assert missing == []


def towers_of(model, slot):
    if isinstance(model, STAR):
        return [layer.own_weight[slot] for layer in model.star] + [layer.own_bias[slot] for layer in model.star]
    own = list(model.towers.of[slot].parameters())
    if isinstance(model, MMoE):
        own.append(model.gates[slot].weight)
    if isinstance(model, PLE):
        own += [layer.gates[slot].weight for layer in model.layers]
        own += list(model.layers[-1].own[slot].parameters())
    return own


@pytest.mark.parametrize("kind", [SharedBottom, MMoE, PLE, STAR])
def test_rows_of_one_domain_give_no_gradient_to_the_towers_of_others(kind):
    model = built(kind)
    model(some_batch(domain=1)).sum().backward()
    assert all(part.grad is not None and part.grad.abs().sum() > 0 for part in towers_of(model, 1))
    for slot in (0, 2):
        assert all(part.grad is None for part in towers_of(model, slot))


@pytest.mark.parametrize("kind", [SharedBottom, MMoE, PLE, STAR])
def test_a_mixed_batch_scores_as_its_domains_do_apart(kind):
    model, batch = built(kind), some_batch()
    # STAR also while training: each domain is normalised by itself.
    mixed = model(batch) if kind is STAR else model.eval()(batch)
    for slot in range(3):
        rows = (batch.domain == slot).nonzero()[:, 0]
        torch.testing.assert_close(model(batch.rows(rows)), mixed[rows])


def test_the_single_domain_baseline_reads_no_source_history():
    model, batch = built(DNNSingle).eval(), some_batch()
    score = model(batch)
    batch.short_source.item.add_(1).remainder_(20)
    batch.lifelong.item.add_(1).remainder_(20)
    assert torch.equal(model(batch), score)


def test_mmoe_by_hand_mixes_experts_by_the_softmax_of_its_own_gate():
    model, batch = built(MMoE).eval(), some_batch(rows=1, domain=2)
    x = model.inputs(batch).features[0]
    share = torch.softmax(model.gates[2].weight @ x, 0)
    mixed = sum(share[e] * expert(x) for e, expert in enumerate(model.experts))
    torch.testing.assert_close(model.towers.of[2](mixed) + model.inputs.expected(batch) + batch.offset, model(batch))


def test_mmoe_starts_with_every_expert_heard_alike():
    torch.manual_seed(0)
    model, batch = MMoE(CONFIG, item_codes(), experts=5).eval(), some_batch(domain=2)
    x = model.inputs(batch).features
    alike = torch.stack([expert(x) for expert in model.experts]).mean(0)
    expected = model.towers.of[2](alike).squeeze(-1) + model.inputs.expected(batch) + batch.offset
    torch.testing.assert_close(model(batch), expected)


def test_the_shared_gate_of_ple_mixes_the_experts_of_all_domains():
    torch.manual_seed(0)
    layer = CustomizedGate(3, 2, domains=2, own=1, shared=1, dropout=0.0, last=False)
    x = torch.randn(1, 3)
    own, shared = layer(x, x, [(1, torch.tensor([0]))])
    first, second, common = layer.own[0](x), layer.own[1](x), layer.shared[0](x)
    torch.testing.assert_close(own, (second + common) / 2)
    torch.testing.assert_close(shared, (first + second + common) / 3)


def test_the_last_layer_of_ple_has_no_shared_gate():
    model = built(PLE)
    assert [layer.shared_gate is None for layer in model.layers] == [False, True]


def test_partitioned_norm_uses_each_domains_own_mean_and_spread():
    norm = PartitionedNorm(1, 2, epsilon=0.0)
    z = torch.tensor([[1.0], [10.0], [3.0], [30.0]])
    present = [(0, torch.tensor([0, 2])), (1, torch.tensor([1, 3]))]
    assert norm(z, present)[:, 0].tolist() == [-1.0, -1.0, 1.0, 1.0]
    assert norm.mean[:, 0].tolist() == [2.0, 20.0]
    assert norm.variance[:, 0].tolist() == pytest.approx([2.0, 200.0])  # unbiased, for rows not in the batch
    norm.eval()
    expected = [(1 - 2) / 2**0.5, (10 - 20) / 200**0.5, (3 - 2) / 2**0.5, (30 - 20) / 200**0.5]
    assert norm(z, present)[:, 0].tolist() == pytest.approx(expected)


def test_a_single_row_of_a_domain_falls_back_on_its_moving_average():
    norm = PartitionedNorm(1, 1, epsilon=0.0)
    out = norm(torch.tensor([[5.0]]), [(0, torch.tensor([0]))])
    assert out.tolist() == [[5.0]]
    assert norm.batches.tolist() == [0]


def test_scale_and_shift_of_partitioned_norm_are_shared_times_and_plus_own():
    norm = PartitionedNorm(1, 1, epsilon=0.0).eval()
    with torch.no_grad():
        for part, value in ((norm.scale, 2.0), (norm.domain_scale, 3.0), (norm.shift, 5.0), (norm.domain_shift, 7.0)):
            part.fill_(value)
    assert norm(torch.tensor([[1.0]]), [(0, torch.tensor([0]))]).tolist() == [[18.0]]


def test_a_star_layer_multiplies_weights_and_adds_biases():
    layer = StarLinear(2, 1, 2)
    with torch.no_grad():
        layer.shared_weight.copy_(torch.tensor([[2.0, 3.0]]))
        layer.own_weight[1].copy_(torch.tensor([[10.0, 100.0]]))
        layer.shared_bias.fill_(1.0)
        layer.own_bias[1].fill_(0.5)
    assert layer(torch.tensor([[1.0, 1.0]]), 1).tolist() == [[321.5]]
    assert layer(torch.tensor([[1.0, 1.0]]), 0).tolist() == [[6.0]]


def test_star_keeps_the_signals_size_at_the_start():
    torch.manual_seed(0)
    layer = StarLinear(256, 256, 3)
    assert layer(torch.randn(500, 256), 0).std().item() == pytest.approx(1.0, abs=0.1)


def test_the_star_logit_may_be_negative():
    model = built(STAR).eval()
    with torch.no_grad():
        model.auxiliary[-1].weight.zero_()
        for bias in model.star[-1].own_bias:
            bias.fill_(-50.0)
    assert (model(some_batch()) < 0).all()


def test_the_short_view_falls_back_on_the_end_of_the_long_history():
    inputs, batch = Inputs(CONFIG, item_codes()), some_batch()
    object.__setattr__(batch, "short_source", None)
    seen = inputs.short_source_of(batch).mask().sum(1)
    assert torch.equal(seen, batch.lifelong.mask().sum(1).clamp(max=CONFIG.short))
    assert latest(batch.lifelong, 2).mask().sum(1).max() == 2


def test_a_baseline_starts_from_the_items_mean_and_the_users_wide_features():
    inputs, batch = Inputs(replace(CONFIG, task="rating"), item_codes()), some_batch(domain=1)
    means = torch.arange(CONFIG.item_rows).float()
    inputs.set_means(means, torch.full((20,), 0.5))
    known = torch.where(batch.item > 0, batch.item + 20, 0).float()
    torch.testing.assert_close(inputs.expected(batch), known)
    with torch.no_grad():
        inputs.own_wide_weights[1, 0] = 2.0
    features = plain_features(batch.lifelong, inputs.source_values)[:, 0]
    torch.testing.assert_close(inputs.expected(batch), known + 2 * features)


def test_without_wide_features_a_baseline_starts_from_the_mean_label_alone():
    config = replace(CONFIG, wide=False, mean_label=0.2)
    start = Inputs(config, item_codes()).expected(some_batch())
    torch.testing.assert_close(start.sigmoid(), torch.full((24,), 0.2))


def test_softmax_over_no_events_is_zero_everywhere():
    weight = masked_softmax(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[True, False], [False, False]]))
    assert weight.tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_item_codes_must_fit_the_configuration():
    with pytest.raises(ValueError, match="item codes"):
        Inputs(CONFIG)
    with pytest.raises(ValueError, match="shape"):
        Inputs(CONFIG, item_codes()[:5])
