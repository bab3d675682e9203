"""The composed network: what a score may depend on, and what it must not."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from models.batch import Batch, Events
from models.layers.contrast import ContrastConfig
from models.layers.embeddings import recency_bucket, value_code
from models.layers.pyramid import PyramidConfig
from models.layers.target_attention import TargetAttention
from models.layers.wide import SHRINKAGE
from models.ranker.network import DomainConfig, Ranker, RankerConfig

MakeBatch = Callable[..., Batch]
MakeRanker = Callable[..., Ranker]
ARCHITECTURES = ["dacdr", "lcn", "dacdr+lcn", "domain_over_pyramid"]
TIGHT = {"atol": 1e-10, "rtol": 1e-9}


def one_by_one(ranker: Ranker, batch: Batch) -> Tensor:
    """Each row scored alone."""
    return torch.cat([ranker(batch.rows(torch.tensor([row]))) for row in range(len(batch))])


def every_history(batch: Batch, change: Callable[[Events], Events]) -> Batch:
    return replace(
        batch,
        **{
            name: change(events)
            for name in ("lifelong", "short_source", "short_target")
            if (events := getattr(batch, name)) is not None
        },
    )


def seen_by(ranker: Ranker, events: Events, row: int, now: Tensor, items: Tensor) -> Tensor:
    """Written-out tokens (item + action + value + recency) of the events that one row sees."""
    stored, visible = events.row[row], slice(int(events.start[row]), int(events.stop[row]))
    context = ranker.embeddings.event_context
    table, values = context.weight, context.actions
    recency = values + 41 + recency_bucket(now - events.time[stored, visible])
    action, value = events.action[stored, visible], events.value[stored, visible]
    return torch.stack([items, table[action] + table[values + value_code(value)] + table[recency]])


def textbook(ranker: Ranker, batch: Batch, row: int) -> Tensor:  # noqa: PLR0915 - one row, written out whole
    """One row through DACDR and LCN side by side (architecture "dacdr+lcn", concat), each event projected."""
    assert ranker.dacdr is not None
    assert ranker.dacdr.attention.domain_step is not None
    assert ranker.dacdr.attention.item_step is not None
    assert ranker.pyramid is not None
    assert ranker.embeddings.users is not None
    slot = int(batch.domain[row])
    owned = ranker.owned(slot)
    candidate = ranker.embeddings.candidates(owned, batch.item[row], batch.item_features[row])
    profile = torch.cat(
        [ranker.embeddings.user_fields.tokens(batch.user_features[row]), ranker.embeddings.users(batch.user[row])[None]]
    )
    tokens = (
        torch.cat([ranker.embeddings.domain_fields.tokens(owned.feature_codes), ranker.embeddings.free_token])
        + owned.tokens
    )

    def source(events: Events) -> Tensor:
        visible = slice(int(events.start[row]), int(events.stop[row]))
        return ranker.embeddings.stored(events.item[events.row[row], visible])

    def attend(queries: Tensor, keys: Tensor, weight: Tensor) -> Tensor:
        scores = (queries @ weight[0]) @ (keys @ weight[1]).T / math.sqrt(ranker.config.width)
        return scores.softmax(-1) @ (keys @ weight[2])

    item, context = seen_by(ranker, batch.lifelong, row, batch.time[row], source(batch.lifelong))
    history = torch.cat([ranker.dacdr.attention.null[None], item + context])
    domain_view = attend(tokens, history, ranker.dacdr.attention.domain_step.weight + owned.domain_weights)
    memory = torch.cat([domain_view, profile, history])
    item_view = attend(candidate[None], memory, ranker.dacdr.attention.item_step.weight + owned.item_weights)
    transferred = ranker.dacdr.encoder.layers(torch.cat([domain_view, item_view, tokens]).flatten())

    pyramid, config = ranker.pyramid, ranker.pyramid.config
    assert pyramid.msa is not None
    assert pyramid.fsa is not None
    both = torch.cat([item, context], -1)
    raw = item @ candidate
    levels = [raw @ item / max(1, len(raw))]
    # An item's repeats tie here, and all that tie with the last one chosen go on.
    least = raw.topk(min(config.k1, len(raw))).values.amin() if len(raw) else 0
    chosen = (raw >= least - 1e-9).nonzero()[:, 0]
    raw = (candidate @ pyramid.msa.query) @ (both[chosen] @ pyramid.msa.key).T / math.sqrt(ranker.config.width)
    levels.append(raw @ (both[chosen] @ pyramid.msa.value) / max(1, len(raw)))
    chosen = chosen[raw.topk(min(config.k2, len(raw))).indices]
    size = ranker.config.width // config.heads
    heads = [
        (
            (candidate @ pyramid.fsa.query[:, part]) @ (both[chosen] @ pyramid.fsa.key[:, part]).T / math.sqrt(size)
        ).softmax(-1)
        @ (both[chosen] @ pyramid.fsa.value[:, part])
        for part in (slice(head * size, (head + 1) * size) for head in range(config.heads))
    ]
    levels.append(pyramid.fsa.feed_forward(torch.cat(heads)))

    def short(view: TargetAttention, events: Events, items: Tensor) -> Tensor:
        seen = seen_by(ranker, events, row, batch.time[row], items).sum(0)
        query = candidate.expand_as(seen)
        hidden = view.first(torch.cat([query, seen, query * seen, query - seen], -1)).relu()
        return (view.last(hidden) * seen).sum(0)

    assert batch.short_target is not None
    assert batch.short_source is not None
    target = batch.short_target
    visible = slice(int(target.start[row]), int(target.stop[row]))
    own_items = ranker.embeddings.stored(target.item[target.row[row], visible], owned)
    assert ranker.short_views.target is not None
    assert ranker.short_views.source is not None
    views = [
        *levels,
        short(ranker.short_views.target, target, own_items),
        short(ranker.short_views.source, batch.short_source, source(batch.short_source)),
    ]
    parts = [
        candidate,
        profile.flatten(),
        ranker.embeddings.context_fields.tokens(batch.context[row]).flatten(),
        *views,
        *(view * candidate for view in views),
        profile[-1] * candidate,
        transferred,
        transferred * candidate,
    ]
    visible = slice(int(batch.lifelong.start[row]), max(int(batch.lifelong.start[row]), int(batch.lifelong.stop[row])))
    stored = batch.lifelong.row[row]
    residual = batch.lifelong.value[stored, visible] - ranker.wide.source_values[batch.lifelong.item[stored, visible]]
    count = torch.tensor(float(len(residual)), dtype=residual.dtype)
    features = torch.stack(
        [
            residual.sum() / (count + SHRINKAGE),
            (residual.square().sum() / (count + SHRINKAGE)).sqrt(),
            torch.log1p(count) / 5,
        ]
    )
    mean = (owned.items or ranker.embeddings.source_items).mean_of(batch.item[row])
    expected = torch.logit(mean) + features @ (ranker.wide.weights + owned.wide_weights)
    return ranker.head.layers(torch.cat([*parts, features]))[0] + expected + batch.offset[row]


def test_a_mixed_batch_equals_the_textbook(make_ranker: MakeRanker, make_batch: MakeBatch) -> None:
    """Grouped rows, folded projections and looked-up context against plain loops, in float64 and in float32."""
    ranker = make_ranker(architecture="dacdr+lcn")
    batch = make_batch(40)
    expected = torch.stack([textbook(ranker, batch, row) for row in range(len(batch))])
    torch.testing.assert_close(ranker(batch), expected, atol=1e-8, rtol=1e-8)
    single = in_float32(batch)
    expected = expected.float()
    torch.testing.assert_close(ranker.float()(single), expected, atol=1e-5, rtol=1e-5)


def in_float32(batch: Batch) -> Batch:
    parts = {name: getattr(batch, name).float() for name in ("label", "weight", "offset")}
    return every_history(replace(batch, **parts), lambda events: replace(events, value=events.value.float()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_does_not_depend_on_its_batch_mates(
    architecture: str, make_ranker: MakeRanker, make_batch: MakeBatch
) -> None:
    """Alone, in a batch of mixed domains and shared users, in a batch of one domain: the same score."""
    ranker = make_ranker(architecture=architecture)
    for batch in (make_batch(25), make_batch(9, users=9, domain=1), make_batch(30, users=2, domain=2)):
        torch.testing.assert_close(ranker(batch), one_by_one(ranker, batch), **TIGHT)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rows", [5, 20])
def test_candidates_of_one_request_share_the_user_side(
    architecture: str, rows: int, make_ranker: MakeRanker, make_batch: MakeBatch
) -> None:
    """One user, one moment, many candidates: read once, scored as if each came alone."""
    ranker = make_ranker(architecture=architecture)
    batch = make_batch(rows, users=1, domain=2)
    same = torch.zeros(rows, dtype=torch.long)
    batch = replace(
        batch,
        time=batch.time[same],
        lifelong=replace(batch.lifelong, start=batch.lifelong.start[same], stop=same + 15),
        short_target=batch.short_target
        and batch.short_target
        and replace(batch.short_target, row=same, start=same, stop=same + 3),
        short_source=None,
    )
    torch.testing.assert_close(ranker(batch), one_by_one(ranker, batch), **TIGHT)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_permuting_candidates_permutes_scores(
    architecture: str, make_ranker: MakeRanker, make_batch: MakeBatch
) -> None:
    """No row has a place."""
    ranker, batch = make_ranker(architecture=architecture), make_batch(20)
    order = torch.randperm(20)
    torch.testing.assert_close(ranker(batch.rows(order)), ranker(batch)[order], **TIGHT)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("memory", ["concat", "cascade", "rescale"])
def test_padding_and_its_amount_never_change_a_score(
    architecture: str, memory: str, make_ranker: MakeRanker, make_batch: MakeBatch
) -> None:
    """Any number of columns before and after, filled with anything, and the future after ``stop``."""
    ranker, batch = make_ranker(architecture=architecture, ia_memory=memory), make_batch(20)

    def padded(events: Events, before: int, after: int) -> Events:
        def wider(part: Tensor, high: int) -> Tensor:
            garbage = torch.randint(0, high, (part.shape[0], before + after)).to(part.dtype)
            return torch.cat([garbage[:, :before], part, garbage[:, before:]], 1)

        return Events(
            item=wider(events.item, 14),
            action=wider(events.action, 3),
            value=wider(events.value, 5),
            time=wider(events.time, 10**12),
            row=events.row,
            start=events.start + before,
            stop=events.stop + before,
        )

    for before, after in ((0, 0), (0, 7), (5, 0), (3, 30)):
        wide = every_history(batch, partial(padded, before=before, after=after))
        torch.testing.assert_close(ranker(wide), ranker(batch), **TIGHT)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_events_outside_a_rows_window_do_not_matter(
    architecture: str, make_ranker: MakeRanker, make_batch: MakeBatch
) -> None:
    """The future of a shared history is not read by the row that may not see it."""
    ranker, batch = make_ranker(architecture=architecture), make_batch(12, users=12)
    before = ranker(batch)

    def scrambled(events: Events) -> Events:
        hidden = torch.ones(events.item.shape, dtype=torch.bool)
        for row, seen in zip(events.row, events.mask(), strict=True):
            hidden[row] &= ~seen
        return replace(
            events,
            item=torch.where(hidden, (events.item + 5) % 14, events.item),
            value=torch.where(hidden, -3.0, events.value),
            action=torch.where(hidden, 1, events.action),
        )

    torch.testing.assert_close(ranker(every_history(batch, scrambled)), before, **TIGHT)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_order_of_events_at_one_moment_does_not_matter(
    architecture: str, make_ranker: MakeRanker, make_batch: MakeBatch
) -> None:
    """Ties in time have no order of their own."""
    ranker, batch = make_ranker(architecture=architecture), make_batch(12, full=True)
    events = batch.lifelong
    events = replace(
        events, time=events.time[:, :1] + torch.arange(17) // 6 * 10**9, start=torch.zeros_like(events.start)
    )
    batch = replace(batch, lifelong=events)
    within = torch.cat([torch.randperm(6), 6 + torch.randperm(6), 12 + torch.randperm(5)])
    shuffled = replace(
        events, item=events.item[:, within], action=events.action[:, within], value=events.value[:, within]
    )
    torch.testing.assert_close(ranker(replace(batch, lifelong=shuffled)), ranker(batch), **TIGHT)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_empty_history_is_scored(architecture: str, make_ranker: MakeRanker, make_batch: MakeBatch) -> None:
    """A user without events, or without any stored column: a finite score and finite gradients."""
    ranker, batch = make_ranker(architecture=architecture), make_batch(8)
    for length in (17, 0):
        nothing = every_history(
            batch,
            lambda events, length=length: replace(
                events,
                **{part: getattr(events, part)[:, :length] for part in ("item", "action", "value", "time")},
                start=torch.zeros_like(events.start),
                stop=torch.zeros_like(events.stop),
            ),
        )
        score = ranker(nothing)
        score.sum().backward()
        assert torch.isfinite(score).all()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in ranker.parameters())


@pytest.mark.parametrize("memory", ["concat", "cascade", "rescale"])
def test_gradients_reach_everything_that_should_learn(
    memory: str, make_ranker: MakeRanker, make_batch: MakeBatch
) -> None:
    """Both attention steps, shared and owned, all pyramid levels, every table; the calibrator alone is fitted apart."""
    ranker = make_ranker(architecture="dacdr+lcn", ia_memory=memory)
    ranker(make_batch(64)).square().sum().backward()
    silent = [name for name, p in ranker.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert all("calibrator" in name for name in silent), silent


def test_the_first_step_of_a_fresh_adapter_moves_both_attention_steps(
    make_ranker: MakeRanker, make_batch: MakeBatch
) -> None:
    """Zero is a start, not a trap: every owned part but the calibrator has a gradient at once."""
    ranker = make_ranker(trained=False)
    ranker(make_batch(64, domain=2)).square().sum().backward()
    adapter = ranker.owned(2)
    assert adapter.domain_weights is not None
    assert adapter.item_weights is not None
    for weights in (adapter.domain_weights, adapter.item_weights):
        assert weights.grad is not None
        assert (weights.grad.flatten(1).abs().amax(1) > 0).all()
    assert adapter.tokens.grad is not None
    assert (adapter.tokens.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fresh_domain_scores_like_the_backbone(
    architecture: str, make_ranker: MakeRanker, make_batch: MakeBatch
) -> None:
    """Bit-equal to a source slot of the same features whose owned part is taken away, items being unknown to both."""
    ranker = make_ranker(architecture=architecture)
    plain = ranker.add_domain(DomainConfig(3, (1, 1)))
    with torch.no_grad():
        for parameter in ranker.owned(0).parameters():
            parameter.zero_()
    batch = replace(make_batch(20, domain=0), short_target=None)
    unknown = replace(batch, item=torch.zeros_like(batch.item))
    with torch.no_grad():
        ranker.embeddings.source_items.rows.weight[0] = 0
    fresh = replace(batch, domain=torch.full_like(batch.domain, plain), item=batch.item % 3)
    assert torch.equal(ranker(fresh), ranker(unknown))


def test_a_fresh_domain_may_start_like_another(make_ranker: MakeRanker, make_batch: MakeBatch) -> None:
    """Zero-shot by the nearest domain: its tokens and attention, the new domain's own items."""
    ranker = make_ranker()
    copy = ranker.add_domain(ranker.owned(2).config, ranker.owned(2).items.codes, like=2)  # type: ignore[union-attr]
    batch = replace(make_batch(20, domain=2), short_target=None)
    batch = replace(batch, item=torch.full_like(batch.item, 99))
    with torch.no_grad():
        ranker.owned(2).items.rows.weight[0] = 0  # type: ignore[union-attr]
    assert torch.equal(ranker(batch), ranker(replace(batch, domain=torch.full_like(batch.domain, copy))))


def test_the_prior_is_added_to_the_score(make_ranker: MakeRanker, make_batch: MakeBatch) -> None:
    """The bias track."""
    ranker, batch = make_ranker(), make_batch(10)
    offset = torch.linspace(-1, 1, 10, dtype=torch.float64)
    torch.testing.assert_close(ranker(replace(batch, offset=offset)), ranker(batch) + offset)


def test_clicks_are_probabilities_and_ratings_are_not(make_ranker: MakeRanker, make_batch: MakeBatch) -> None:
    """The calibrator of each row's own domain, then the sigmoid for clicks alone."""
    batch = make_batch(30)
    clicks, ratings = make_ranker(), make_ranker(task="rating", mean_label=40.0)
    probability = clicks.probability(batch)
    assert ((probability > 0) & (probability < 1)).all()
    for slot in range(3):
        calibrator = clicks.owned(slot).calibrator
        mine = batch.domain == slot
        expected = (clicks(batch)[mine] * calibrator.scale + calibrator.shift).sigmoid()
        torch.testing.assert_close(probability[mine], expected)
    scale = torch.stack([ratings.owned(int(slot)).calibrator.scale for slot in batch.domain])
    shift = torch.stack([ratings.owned(int(slot)).calibrator.shift for slot in batch.domain])
    torch.testing.assert_close(ratings.probability(batch), ratings(batch) * scale + shift)


def test_hidden_users_appear_in_training_only(make_ranker: MakeRanker, make_batch: MakeBatch) -> None:
    """User dropout makes the unknown user mean something and leaves serving alone."""
    ranker, batch = make_ranker(user_dropout=0.9), make_batch(30)
    assert torch.equal(ranker(batch), ranker(batch))
    assert not torch.equal(ranker.train()(batch), ranker.eval()(batch))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_stays_near_float32(architecture: str, make_ranker: MakeRanker, make_batch: MakeBatch) -> None:
    """Under autocast a score moves by at most 3 % of the scores' spread: top-K may then choose other near-ties."""
    ranker, batch = make_ranker(architecture=architecture).float(), in_float32(make_batch(200, domain=2))
    exact = ranker(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = ranker(batch).float()
    assert (rough - exact).abs().mean() < 0.03 * exact.std()


def test_slots_of_the_backbone_come_first(make_ranker: MakeRanker) -> None:
    """A source slot after a target's would change its number when the backbone is loaded alone."""
    with pytest.raises(ValueError, match="first"):
        make_ranker().add_domain(DomainConfig(0, (0, 0)))


def test_a_domain_must_fit_the_ranker(make_ranker: MakeRanker) -> None:
    """Wrong number of domain features, wrong shape of item codes, codes without a table, an unknown slot."""
    ranker = make_ranker()
    with pytest.raises(ValueError, match="2 feature codes"):
        ranker.add_domain(DomainConfig(4, (1,)))
    with pytest.raises(ValueError, match="item codes must have shape"):
        ranker.add_domain(DomainConfig(4, (1, 1)), torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="no domain in slot 3"):
        ranker.owned(3)


@pytest.mark.parametrize(
    "settings",
    [{"architecture": "sim"}, {"ia_memory": "stack"}, {"task": "rank"}, {"user_dropout": 1.0}, {"source_items": 0}],
)
def test_a_setting_out_of_range_is_refused(settings: dict, make_ranker: MakeRanker) -> None:
    """At construction, by name."""
    with pytest.raises(ValueError, match="|".join(settings)):
        make_ranker(**settings)


def test_the_contrastive_loss_is_training_only(make_ranker: MakeRanker, make_batch: MakeBatch) -> None:
    """LCN's CRP: it reaches source and own items, adds no tensor and leaves every score bit-equal."""
    batch = make_batch(60)
    plain, taught = make_ranker(), make_ranker(contrast=ContrastConfig(negatives=64))
    taught.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(plain(batch), taught(batch))
    assert plain.auxiliary_loss(batch) is None
    loss = taught.auxiliary_loss(batch)
    assert loss is not None
    loss.backward()
    own = taught.owned(2).items
    assert own is not None
    for table in (taught.embeddings.source_items, own):
        assert table.rows.weight.grad is not None
        assert (table.rows.weight.grad != 0).any()
    assert taught.auxiliary_loss(replace(batch, short_target=None, short_source=None)) is None


def test_no_rows_have_no_scores(make_ranker: MakeRanker, make_batch: MakeBatch) -> None:
    """An empty batch is answered, not refused."""
    assert make_ranker()(make_batch(4).rows(torch.zeros(0, dtype=torch.long))).shape == (0,)


def test_a_config_survives_json() -> None:
    """As the checkpoint writes it; a name it does not know is refused."""
    import json

    config = RankerConfig(
        9, (3, 4), architecture="dacdr+lcn", pyramid=PyramidConfig(k1=8, k2=4).without("msa"), contrast=ContrastConfig()
    )
    assert RankerConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    with pytest.raises(ValueError, match="wdith"):
        RankerConfig.from_dict({"source_items": 3, "wdith": 4})


def test_the_cascades_share_is_told_for_rows_of_a_batch(make_ranker: MakeRanker, make_batch: MakeBatch) -> None:
    """A share of events, which does not depend on a row's batch mates; no pyramid, no share."""
    batch = make_batch(40)
    ranker = make_ranker(architecture="lcn")
    share, counts = ranker.consistency(batch, top=2)
    assert share.shape == counts.shape == (40,)
    assert set(share.tolist()) == {0.0, 0.5, 1.0}
    alone = torch.cat([ranker.consistency(batch.rows(torch.tensor([row])), top=2)[0] for row in range(40)])
    assert torch.equal(share, alone)
    with pytest.raises(ValueError, match="pyramid"):
        make_ranker(architecture="dacdr").consistency(batch)
