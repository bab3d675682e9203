"""SIM, ETA, SDIM and TWIN: each search by hand, and that padding, order and batch mates never matter."""

import io
import math
from dataclasses import replace

import pytest
import torch

from benchmarks.baselines.lifelong import ETA, SDIM, TWIN, ExactSearch, SIMSoft, best
from models.baselines.inputs import BaselineConfig
from models.batch import Batch, Events
from models.layers.contrast import ContrastConfig

CONFIG = BaselineConfig(
    source_items=40, domain_items=(0, 15), actions=3, users=6, width=8, hidden=(16, 8, 4), user_dropout=0.0
)
EVERY = [SIMSoft, ETA, SDIM, TWIN]


def some_batch(rows=12, length=30, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(top, *shape):
        return torch.randint(0, top, shape, generator=generator)

    def events(items, length):
        start = draw(length // 3, rows)
        return Events(
            item=draw(items, 4, length),
            action=draw(3, 4, length),
            value=torch.rand(4, length, generator=generator),
            time=torch.arange(length).expand(4, length) * 10**7,
            row=draw(4, rows),
            start=start,
            stop=start + draw(length * 2 // 3, rows),
        )

    none = torch.zeros(rows, 0, dtype=torch.long)
    return Batch(
        domain=draw(2, rows),
        user=draw(6, rows),
        item=draw(15, rows),
        item_features=none,
        user_features=none,
        context=none,
        time=torch.full((rows,), 10**9),
        label=draw(2, rows).float(),
        weight=torch.ones(rows),
        offset=torch.zeros(rows),
        lifelong=events(40, length),
        short_source=events(40, 6),
        short_target=events(15, 6),
    )


def built(kind, **options):
    torch.manual_seed(0)
    model = kind(CONFIG, **options)
    torch.nn.init.normal_(model.inputs.items.rows.weight)  # so that a search has something to find
    return model.eval()


@pytest.mark.parametrize("kind", EVERY)
class TestEveryLifelongBaseline:
    def test_padding_never_changes_a_score(self, kind):
        options = {} if kind is SDIM else {"handed_on": 5}
        model, batch = built(kind, **options), some_batch()
        score = model(batch)
        events = batch.lifelong
        longer = replace(
            events,
            **{
                name: torch.cat([getattr(events, name), getattr(events, name)[:, :7]], 1)
                for name in ("item", "action", "value", "time")
            },
        )
        torch.testing.assert_close(model(replace(batch, lifelong=longer)), score)

    def test_the_future_never_changes_a_score(self, kind):
        model, batch = built(kind), some_batch(rows=1)
        score = model(batch)
        batch.lifelong.item[:, batch.lifelong.stop :] = 7
        batch.lifelong.item[:, : batch.lifelong.start] = 7
        assert torch.equal(model(batch), score)

    def test_permuted_rows_give_permuted_scores(self, kind):
        model, batch = built(kind), some_batch()
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(model(batch.rows(order)), model(batch)[order])

    def test_a_score_does_not_depend_on_batch_mates(self, kind):
        model, batch = built(kind), some_batch()
        alone = torch.cat([model(batch.rows(torch.tensor([row]))) for row in range(len(batch))])
        torch.testing.assert_close(alone, model(batch))

    def test_a_user_without_history_gets_a_finite_score(self, kind):
        model, batch = built(kind), some_batch()
        batch.lifelong.stop.copy_(batch.lifelong.start)
        read = model.inputs(batch, lifelong=True)
        assert model.architecture(read, batch).abs().max() == 0
        assert torch.isfinite(model(batch)).all()

    def test_scores_are_the_same_twice_and_after_a_reload(self, kind):
        model, batch = built(kind), some_batch()
        stored = io.BytesIO()
        torch.save(model.state_dict(), stored)
        stored.seek(0)
        torch.manual_seed(99)
        again = kind(CONFIG)
        again.load_state_dict(torch.load(stored))
        assert torch.equal(model(batch), model(batch))
        assert torch.equal(again.eval()(batch), model(batch))

    def test_with_crp_it_scores_alike_and_learns_the_items_of_both_domains(self, kind):
        model, batch = built(kind, contrast=ContrastConfig(negatives=16)), some_batch()
        assert torch.equal(model(batch), built(kind)(batch))
        model.auxiliary_loss(batch).backward()
        gradient = model.inputs.items.rows.weight.grad
        assert gradient[:40].abs().sum() > 0
        assert gradient[40:].abs().sum() > 0

    def test_the_long_history_gets_gradients(self, kind):
        model, batch = built(kind), some_batch()
        batch = replace(batch, short_source=None, short_target=None, domain=torch.ones_like(batch.domain))
        batch = replace(batch, short_source=replace(batch.lifelong, stop=batch.lifelong.start))
        model(batch).sum().backward()
        seen = batch.lifelong.item[batch.lifelong.row][batch.lifelong.mask()].unique()
        assert model.inputs.items.rows.weight.grad[seen].abs().sum() > 0


def test_padding_is_not_handed_on_before_events_of_negative_score():
    chosen = best(torch.tensor([[-5.0, 0.0, -1.0]]), torch.tensor([[True, False, True]]), 2)
    assert chosen.position.tolist() == [[2, 0]]
    assert chosen.real.all()
    short = best(torch.tensor([[-5.0, 0.0, -1.0]]), torch.tensor([[False, False, True]]), 2)
    assert short.real.tolist() == [[True, False]]


def test_of_equal_scores_the_later_event_is_handed_on():
    score = torch.tensor([[0.5, -0.0, 0.0, -1.5, -1.5, -2.0]])
    chosen = best(score, torch.ones(1, 6, dtype=torch.bool), 4)
    assert chosen.position.tolist() == [[0, 2, 1, 4]]


def test_exact_search_by_hand():
    torch.manual_seed(0)
    attention = ExactSearch(2, 1)
    with torch.no_grad():
        for layer in (attention.query, attention.key, attention.value, attention.out):
            layer.weight.copy_(torch.eye(2))
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 3.0], [9.0, 9.0]]])
    out = attention(torch.tensor([[2.0, 0.0]]), tokens, torch.tensor([[True, True, False]]))
    share = torch.softmax(torch.tensor([2.0, 0.0]) / math.sqrt(2), 0)
    torch.testing.assert_close(out, torch.stack([share[0], 3 * share[1]])[None])


def test_the_soft_search_is_the_product_of_two_projections():
    model = built(SIMSoft)
    q, e = torch.randn(2, 8), torch.randn(2, 5, 8)
    expected = torch.einsum("bd,bld->bl", model.ask(q), model.answer(e))
    torch.testing.assert_close(model.search(q, e), expected)


def test_only_its_own_loss_teaches_the_soft_search():
    model, batch = built(SIMSoft), some_batch()
    model(batch).sum().backward()
    assert model.ask.weight.grad is None
    model.auxiliary_loss(batch).backward()
    assert model.ask.weight.grad.abs().sum() > 0
    assert model.answer.weight.grad.abs().sum() > 0


def test_the_own_loss_of_the_soft_search_ignores_rows_without_weight():
    model, batch = built(SIMSoft), some_batch()
    half = torch.arange(12) < 6
    weighed = model.auxiliary_loss(replace(batch, weight=half.float()))
    torch.testing.assert_close(weighed, model.auxiliary_loss(batch.rows(half)))


def test_eta_searches_by_hamming_distance_and_later_events_win_ties():
    model = built(ETA, bits=3)
    model.rotation.copy_(torch.zeros(8, 3))
    model.rotation[0, 0] = model.rotation[1, 1] = model.rotation[2, 2] = 1.0
    q = torch.tensor([[1.0, 1.0, 1.0, 0, 0, 0, 0, 0]])
    flips = torch.tensor([[1.0, -1, 1], [1, 1, 1], [-1, -1, -1], [1, 1, 1]])  # distances 1, 0, 3, 0
    e = torch.cat([flips, torch.zeros(4, 5)], 1)[None]
    score = model.search(q, e)
    assert score.tolist() == [[-1, 0, -3, 0]]
    assert best(score, torch.ones(1, 4, dtype=torch.bool), 3).position.tolist() == [[3, 1, 0]]


@pytest.mark.parametrize("kind", [ETA, SDIM, TWIN])
def test_without_crp_there_is_no_second_loss(kind):
    assert built(kind).auxiliary_loss(some_batch()) is None


@pytest.mark.parametrize("kind", [ETA, SDIM])
def test_hashes_are_saved_and_not_trained(kind):
    model = built(kind)
    assert "rotation" in model.state_dict()
    assert "rotation" not in dict(model.named_parameters())


def test_sdim_by_hand_adds_what_falls_into_the_candidates_bucket():
    model = built(SDIM, signs=2, bits=1)
    model.rotation.zero_()
    model.rotation[0, 0] = model.rotation[1, 1] = 1.0
    events = torch.zeros(1, 3, 8)
    events[0, 0, 0], events[0, 1, 1], events[0, 2, :2] = 3.0, 4.0, torch.tensor([-1.0, -1.0])
    batch = some_batch(rows=1, length=3)
    one = torch.tensor([1])
    batch = replace(batch, lifelong=replace(batch.lifelong, start=0 * one, stop=3 * one))
    q = torch.zeros(1, 8)
    q[0, :2] = torch.tensor([1.0, 1.0])
    # sign of the first entry: event 0 alone; of the second: event 1 alone; each brought to length one, then the mean
    out = model.architecture(type("", (), {"candidate": q, "lifelong": events})(), batch)
    expected = torch.zeros(1, 8)
    expected[0, :2] = 0.5
    torch.testing.assert_close(out, expected)


def test_an_empty_bucket_of_sdim_is_zero():
    model = built(SDIM, signs=1, bits=1)
    batch = some_batch(rows=1, length=3)
    events = torch.ones(1, 3, 8)
    out = model.architecture(type("", (), {"candidate": -torch.ones(1, 8), "lifelong": events})(), batch)
    assert out.tolist() == [[0.0] * 8]


@pytest.mark.parametrize("bits", [1, 3])
def test_vectors_collide_as_often_as_their_angle_says(bits):
    torch.manual_seed(3)
    model = SDIM(CONFIG, signs=30_000, bits=bits)
    q, e = torch.zeros(8), torch.zeros(8)
    q[0], e[0], e[1] = 1.0, 1.0, 1.0  # 45 degrees apart
    rate = (model.hashes(q) == model.hashes(e)).float().mean().item()
    assert rate == pytest.approx((1 - 0.25) ** bits, abs=0.015)


def test_twin_selects_by_the_very_score_that_weighs_and_covers_all_when_k_is_large():
    batch = some_batch()
    model = built(TWIN, handed_on=100)
    read = model.inputs(batch, lifelong=True)
    alpha = model.relevance(read, batch)
    mask = batch.lifelong.mask()
    weight = torch.nan_to_num(alpha.masked_fill(~mask[:, None], -math.inf).softmax(-1))
    tokens = model.inputs.tokens(read.lifelong, batch.lifelong, batch)
    heads = torch.einsum("bhl,bld->bhd", weight, tokens)
    values = torch.stack([model.value(heads[:, h])[:, 2 * h : 2 * h + 2] for h in range(4)], 1)
    torch.testing.assert_close(model.architecture(read, batch), model.out(values.flatten(1)))


def test_twins_relevance_by_hand_reads_item_and_context():
    batch, model = some_batch(rows=3), built(TWIN)
    read = model.inputs(batch, lifelong=True)
    alpha = model.relevance(read, batch)
    context = model.inputs.tokens(torch.zeros_like(read.lifelong), batch.lifelong, batch)
    for head in range(4):
        part = slice(2 * head, 2 * head + 2)
        product = torch.einsum("bd,bld->bl", model.query(read.candidate)[:, part], model.key(read.lifelong)[..., part])
        expected = product / math.sqrt(2) + model.context(context)[..., head]
        torch.testing.assert_close(alpha[:, head], expected)


def test_twins_context_is_trained():
    model, batch = built(TWIN), some_batch()
    model(batch).sum().backward()
    assert model.context.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", [SIMSoft, ETA])
def test_consistency_is_whole_when_the_search_may_take_everything(kind):
    model, batch = built(kind), some_batch(rows=30)
    share, known = model.consistency(batch, top=5)
    assert torch.equal(known, batch.lifelong.mask().sum(1) > 5)
    assert ((share >= 0) & (share <= 1)).all()
    few = (batch.lifelong.mask().sum(1) <= 5).nonzero()[:, 0]
    torch.testing.assert_close(share[few], batch.lifelong.mask().sum(1)[few] / 5)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads"):
        TWIN(CONFIG, heads=3)
