"""The scorer: levels, reasons, and rows that are exactly those of training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deployment.engine import scorer
from deployment.engine.scorer import CodeBook, LiveDomain, LiveModel, Popularity
from deployment.messages import Candidate
from feature_repo.online import Events, PushedEvent, UserFeatures
from models.ranker.network import DomainConfig, Ranker, RankerConfig
from orchestrator.data.encoding import FeatureEncoder, Field, SourceRange

NOW = 1_700_000_000_000_000
ITEMS = 6


@pytest.fixture
def encoder() -> FeatureEncoder:
    return FeatureEncoder(
        task="ctr",
        item_fields=(Field("brand", "category", values=("a", "b")), Field("price", "number", edges=(1.0, 10.0))),
        user_fields=(Field("age", "category", values=("young", "old")),),
        context_fields=(Field("hour", "category", values=("9", "10")),),
        domain_fields=(Field("surface", "category", values=("live",)),),
        sources=(SourceRange("video", 1, 0, 21),),
        slots=("video",),
        lifelong=10,
        short=4,
    )


@pytest.fixture
def domain(encoder: FeatureEncoder) -> LiveDomain:
    torch.manual_seed(3)
    ranker = Ranker(
        RankerConfig(
            source_items=encoder.source_rows_total,
            item_fields=tuple(field.size for field in encoder.item_fields),
            user_fields=tuple(field.size for field in encoder.user_fields),
            context_fields=tuple(field.size for field in encoder.context_fields),
            domain_fields=tuple(field.size for field in encoder.domain_fields),
            actions=16,
            width=8,
        ),
        torch.zeros(encoder.source_rows_total, 2, dtype=torch.long),
    )
    ranker.add_domain(DomainConfig(items=0, feature_codes=(0,)))
    codes = np.array([[0, 0], [1, 1], [2, 2], [1, 3], [2, 1], [1, 2]])
    slot = ranker.add_domain(DomainConfig(items=ITEMS, feature_codes=(1,)), torch.from_numpy(codes))
    with torch.no_grad():
        for parameter in ranker.owned(slot).parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        stack = ranker.eval().stack(range(2))
    return LiveDomain(
        name="live",
        number=2,
        role="target",
        task="ctr",
        state="live",
        item_index={f"item-{at}": at for at in range(1, ITEMS + 2)},
        popularity=Popularity(np.array([0.1, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.12])),
        model=LiveModel("v1", "adapter", ranker, slot, encoder, ITEMS, stack),
        item_codes=np.vstack([codes, [1, 1]]),
    )


@pytest.fixture
def user() -> UserFeatures:
    many = 30
    history = Events(
        item=np.arange(many) % 20 + 1,
        domain=np.ones(many, np.int64),
        action=np.ones(many, np.int64),
        value=np.linspace(0, 1, many),
        time_us=NOW - 1_000_000 * np.arange(many, 0, -1),
    )
    return UserFeatures("ann", 5, {"age": "old"}, history, Events.none())


def candidates(*numbers: int) -> list[Candidate]:
    return [Candidate(item_id=f"item-{number}") for number in numbers]


def test_permuted_candidates_give_permuted_scores(domain, user):
    """Nothing but the candidate itself decides its score."""
    forth = scorer.score(domain, candidates(1, 2, 3, 4, 5), user=user, now_us=NOW)
    back = scorer.score(domain, candidates(5, 4, 3, 2, 1), user=user, now_us=NOW)
    np.testing.assert_allclose(forth.score, back.score[::-1], rtol=1e-5)
    assert forth.served_by == "adapter"
    assert forth.model_version == "v1"
    assert len(set(forth.score.round(6))) == 5


def test_one_candidate_scores_as_it_does_among_others(domain, user):
    """The user side is shared between candidates and the same for one."""
    among = scorer.score(domain, candidates(1, 2, 3), user=user, now_us=NOW)
    alone = scorer.score(domain, candidates(2), user=user, now_us=NOW)
    np.testing.assert_allclose(among.score[1], alone.score[0], rtol=1e-5)


def test_events_after_now_and_beyond_the_lifelong_length_are_not_seen(domain, user):
    """A clock that runs ahead somewhere, or a longer store, changes no score."""
    plain = scorer.score(domain, candidates(1, 2, 3), user=user, now_us=NOW)
    future = user.history.with_event(PushedEvent("ann", 3, 1, 1, 1.0, NOW + 1), most=2_000)
    np.testing.assert_array_equal(
        plain.score, scorer.score(domain, candidates(1, 2, 3), user=replace(user, history=future), now_us=NOW).score
    )
    tail = Events(**{name: array[-10:] for name, array in user.history.arrays().items()})
    np.testing.assert_allclose(
        plain.score,
        scorer.score(domain, candidates(1, 2, 3), user=replace(user, history=tail), now_us=NOW).score,
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": None}, scorer.NO_VERSION),
        ({"model": None, "fault": "files are gone"}, scorer.MODEL_FAULT),
        ({"state": "paused"}, scorer.PAUSED),
    ],
)
def test_a_domain_that_cannot_use_a_model_answers_by_popularity(domain, user, change, reason):
    """Most popular first, and the reason with it."""
    scores = scorer.score(replace(domain, **change), candidates(3, 1, 2), user=user, now_us=NOW)
    assert (scores.served_by, scores.model_version, scores.reason) == ("prior", None, reason)
    np.testing.assert_array_equal(scores.score, [0.4, 0.6, 0.5])


def test_an_unknown_user_and_one_without_history_get_the_prior(domain, user):
    """A model that reads histories has nothing to read."""
    unknown = scorer.score(domain, candidates(1), user=None, now_us=NOW)
    empty = scorer.score(domain, candidates(1), user=replace(user, history=Events.none()), now_us=NOW)
    assert [unknown.reason, empty.reason] == [scorer.USER_UNKNOWN, scorer.NO_HISTORY]
    assert unknown.served_by == empty.served_by == "prior"


def test_unknown_items_are_scored_and_marked(domain, user):
    """An item nobody knows and one that came after training read the row of the unknown, apart from their features."""
    asked = [*candidates(1, ITEMS), Candidate(item_id="never-seen"), Candidate(item_id="new", features={"brand": "b"})]
    scores = scorer.score(domain, asked, user=user, now_us=NOW)
    assert scores.unknown.tolist() == [False, True, True, True]
    assert scores.score[2] != scores.score[3]
    assert scores.served_by == "adapter"


def test_given_features_replace_stored_ones(domain, user):
    """Item features, profile and context of the request count; names that no code book knows do not."""
    plain = scorer.score(domain, candidates(1), user=user, now_us=NOW).score[0]
    same = [Candidate(item_id="item-1", features={"brand": "a", "price": 0.5, "colour": "red"})]
    other = [Candidate(item_id="item-1", features={"brand": "b"})]
    assert scorer.score(domain, same, user=user, now_us=NOW).score[0] == plain
    assert scorer.score(domain, other, user=user, now_us=NOW).score[0] != plain
    assert scorer.score(domain, candidates(1), user=user, profile={"age": "young"}, now_us=NOW).score[0] != plain
    assert scorer.score(domain, candidates(1), user=user, context={"hour": 9}, now_us=NOW).score[0] != plain


def test_a_version_that_answers_nonsense_does_not_sort_a_page(domain, user):
    """Not a number anywhere means popularity, and says so."""
    assert domain.model is not None
    with torch.no_grad():
        domain.model.ranker.owned(domain.model.slot).calibrator.shift.fill_(float("nan"))
    scores = scorer.score(domain, candidates(1, 2), user=user, now_us=NOW)
    assert (scores.served_by, scores.reason) == ("prior", scorer.MODEL_FAULT)


CATEGORY = Field("kind", "category", values=("1", "2.5", "true", "word", "Ä"))
NUMBER = Field("size", "number", edges=(-1.0, 0.0, 3.5))


@given(st.one_of(st.none(), st.text(max_size=5), st.sampled_from(CATEGORY.values)))
@pytest.mark.slow
def test_a_category_has_the_code_that_its_column_has(value):
    """Serving encodes one value, training a column: the same code."""
    assert CodeBook([CATEGORY]).encode({"kind": value}, np.zeros(1, np.int64))[0] == CATEGORY.encode([value])[0]


@given(st.one_of(st.none(), st.integers(-5, 5), st.floats(-10, 10), st.text(max_size=4)))
def test_a_number_has_the_code_that_its_column_has(value):
    """Numbers, their text, and what is no number at all."""
    assert CodeBook([NUMBER]).encode({"size": value}, np.zeros(1, np.int64))[0] == NUMBER.encode([value])[0]


@pytest.mark.parametrize("value", [1, 1.0, 2.5, True])
def test_numbers_and_truths_find_the_text_that_ingest_gave_them(value):
    """A category column of numbers is stored as Arrow writes them, and a request may send the number itself."""
    stored = CATEGORY.encode(pa.chunked_array([pa.array([value])]))
    assert CodeBook([CATEGORY]).encode({"kind": value}, np.zeros(1, np.int64))[0] == stored[0] > 0


def test_popularity_of_an_item_beyond_its_table_is_that_of_an_unknown_one():
    """An item that was ingested after the table was made is not an error."""
    assert Popularity(np.array([0.1, 0.9])).of(np.array([0, 1, 7])).tolist() == [0.1, 0.9, 0.1]
