"""From a user's features and candidates to scores: everything a rank request computes, and nothing that waits.

A ``LiveDomain`` is immutable and complete: the request path reads it and never a file or the registry. Batches are
built by the same ``BatchBuilder`` that training uses, so a row scored here is the row that training would have built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from deployment.messages import Candidate
from domains.lifecycle import FallbackLevel
from feature_repo.online import Events, UserFeatures
from models.ranker.network import DomainStack, Ranker
from orchestrator.data.batches import BatchBuilder, Examples, OneUser
from orchestrator.data.encoding import FeatureEncoder, Field

USER_UNKNOWN = "user_unknown"
NO_HISTORY = "no_history"
FEATURES_UNAVAILABLE = "features_unavailable"
NO_VERSION = "no_version"
PAUSED = "paused"
MODEL_FAULT = "model_fault"
ITEM_UNKNOWN = "item_unknown"


class CodeBook:
    """Codes of single values, the same as ``Field.encode`` gives for a column, without building a column for each."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self._position = {field.name: at for at, field in enumerate(fields)}
        self._known = [
            {value: code for code, value in enumerate(field.values, start=1)} if field.kind == "category" else None
            for field in fields
        ]

    def encode(self, values: Mapping[str, Any] | None, codes: np.ndarray) -> np.ndarray:
        """``codes`` (fields,) int64 with the named values put in their place; names that are no field are left out."""
        for name, value in (values or {}).items():
            at = self._position.get(name)
            if at is not None:
                known = self._known[at]
                if value is None:
                    codes[at] = 0
                elif known is not None:
                    codes[at] = known.get(value if isinstance(value, str) else _as_text(value), 0)
                else:
                    codes[at] = int(self.fields[at].encode([value])[0])
        return codes


@dataclass(frozen=True)
class Popularity:
    """What is expected of each item without knowing the user: the prior, the fallback level of last resort.

    Shapes:
        score: (V,) float64 by local item index; 0 is an item nobody has seen
    """

    score: np.ndarray

    def of(self, item: np.ndarray) -> np.ndarray:
        return self.score[np.where(item < len(self.score), item, 0)]


@dataclass(frozen=True)
class LiveModel:
    """The version that answers for a domain: the backbone with the domain's adapter in one of its slots."""

    version_id: str
    level: FallbackLevel
    ranker: Ranker
    slot: int
    encoder: FeatureEncoder
    items: int
    """Rows of the item table that it reads; an item beyond is one that came after its training."""
    stack: DomainStack
    """The owned tensors of every slot, laid beside each other once."""

    @cached_property
    def user_book(self) -> CodeBook:
        return CodeBook(self.encoder.user_fields)

    @cached_property
    def item_book(self) -> CodeBook:
        return CodeBook(self.encoder.item_fields)

    @cached_property
    def context_book(self) -> CodeBook:
        return CodeBook(self.encoder.context_fields)


@dataclass(frozen=True)
class LiveDomain:
    """One domain as it answers now.

    Args:
        item_index: every item id of the domain -> local index (from 1).
        item_codes: (V, F) feature codes by local index for ``model``; empty without one.
        sources: numbers of the source domains whose events its histories hold; None for all of them.
        fault: why a newer version is not the one that answers.
        forced: why a person set the version live against the gate; None where they did not.
        label_range: lowest and highest value of feedback.
        features: what the spec declares, name -> kind, by the part of a request that carries it: items, user, context.
    """

    name: str
    number: int
    role: str
    task: str
    state: str
    item_index: Mapping[str, int]
    popularity: Popularity
    model: LiveModel | None
    item_codes: np.ndarray
    sources: frozenset[int] | None = None
    fault: str | None = None
    forced: str | None = None
    label_range: tuple[float, float] = (0.0, 1.0)
    features: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def paused(self) -> bool:
        return self.state == "paused"

    @property
    def served_by(self) -> FallbackLevel:
        """The best fallback level that this domain can answer from."""
        return "prior" if self.model is None or self.paused else self.model.level


@dataclass(frozen=True)
class Scores:
    """Answer of the scorer, candidates in the order asked.

    Shapes:
        score: (N,) float64
        unknown: (N,) bool, items that the domain (or, where a model scored, the model) has never seen
    """

    score: np.ndarray
    unknown: np.ndarray
    served_by: FallbackLevel
    model_version: str | None
    reason: str | None


def prior_scores(domain: LiveDomain, candidates: Sequence[Candidate], reason: str) -> Scores:
    """Scores by popularity, because of ``reason``."""
    item = _items(domain, candidates)
    return Scores(_not_above_known(domain.popularity.of(item), item == 0), item == 0, "prior", None, reason)


def score(
    domain: LiveDomain,
    candidates: Sequence[Candidate],
    *,
    user: UserFeatures | None,
    profile: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
    now_us: int,
) -> Scores:
    """Scores of the candidates for a user at ``now_us``, from the best fallback level that the user allows."""
    user = _with_own_sources(domain, user)
    reason = fallback_reason(domain, user)
    if reason is not None:
        return prior_scores(domain, candidates, reason)
    assert domain.model is not None
    assert user is not None
    model = domain.model
    item = _items(domain, candidates)
    codes = _item_codes(domain, candidates, item)
    batch = _batch_builder(domain, user, profile).batch(
        _rows(domain, user, item, context, now_us),
        model.slot,
        item_codes=codes,
    )
    with torch.inference_mode():
        probability = model.ranker.probability(batch, model.stack).double().numpy()
    if not np.isfinite(probability).all():
        # A version that answers nonsense must not sort a page.
        return prior_scores(domain, candidates, MODEL_FAULT)
    unknown = (item == 0) | (item >= model.items)
    told = (codes != domain.item_codes[0]).any(axis=1)  # by features whose values the model knows
    return Scores(_not_above_known(probability, (item == 0) & ~told), unknown, model.level, model.version_id, None)


def _not_above_known(score: np.ndarray, nothing_known: np.ndarray) -> np.ndarray:
    """Scores (N,) where an item of which nothing is known scores what the least of the others does, at most."""
    if not nothing_known.any() or nothing_known.all():
        return score
    return np.where(nothing_known, np.minimum(score, score[~nothing_known].min()), score)


def fallback_reason(domain: LiveDomain, user: UserFeatures | None) -> str | None:
    """Why the answer must rest on popularity; None where the model can score."""
    if domain.paused:
        return PAUSED
    if domain.model is None:
        return MODEL_FAULT if domain.fault else NO_VERSION
    if user is None:
        return USER_UNKNOWN
    if not len(user.history) and not len(user.recent):
        return NO_HISTORY
    return None


def _with_own_sources(domain: LiveDomain, user: UserFeatures | None) -> UserFeatures | None:
    """The user with the source events that this domain's histories hold."""
    if user is None or domain.sources is None:
        return user
    seen = np.isin(user.history.domain, list(domain.sources))
    if seen.all():
        return user
    return replace(user, history=Events(**{name: column[seen] for name, column in user.history.arrays().items()}))


def _items(domain: LiveDomain, candidates: Sequence[Candidate]) -> np.ndarray:
    find = domain.item_index.get
    return np.fromiter((find(candidate.item_id, 0) for candidate in candidates), np.int64, len(candidates))


def _item_codes(domain: LiveDomain, candidates: Sequence[Candidate], item: np.ndarray) -> np.ndarray:
    codes = domain.item_codes[np.where(item < len(domain.item_codes), item, 0)]
    assert domain.model is not None
    for row, candidate in enumerate(candidates):
        if candidate.features:
            domain.model.item_book.encode(candidate.features, codes[row])
    return codes


def _rows(
    domain: LiveDomain, user: UserFeatures, item: np.ndarray, context: Mapping[str, Any] | None, now_us: int
) -> Examples:
    assert domain.model is not None
    rows = len(item)
    book = domain.model.context_book
    codes = book.encode(context, np.zeros(len(book.fields), np.int64))
    return Examples(
        domain=domain.name,
        number=domain.number,
        user=np.full(rows, user.index, np.int64),
        item=item,
        time_us=np.full(rows, now_us, np.int64),
        label=np.zeros(rows, np.float32),
        value=np.zeros(rows, np.float32),
        context=np.tile(codes, (rows, 1)),
        weight=np.ones(rows, np.float32),
        offset=np.zeros(rows, np.float32),
    )


def _batch_builder(domain: LiveDomain, user: UserFeatures, profile: Mapping[str, Any] | None) -> BatchBuilder:
    assert domain.model is not None
    book = domain.model.user_book
    codes = book.encode(profile, book.encode(user.profile, np.zeros(len(book.fields), np.int64)))
    return BatchBuilder(
        domain.model.encoder,
        # One user, one row: every index the batch_builder looks up falls back to it.
        user_codes=codes[None, :],
        item_codes={},
        source=OneUser(user.history.arrays()),
        target={domain.name: OneUser(user.recent.arrays() | {"domain": np.full(len(user.recent), domain.number)})},
    )


def _as_text(value: Any) -> str:
    """A value as the code books know it: Arrow's text, where 1.0 is "1" and True is "true"."""
    return pc.cast(pa.scalar(value), pa.string()).as_py()
