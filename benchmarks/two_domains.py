"""Two domains of clicks that share users: which rows train, which test, and what a row may see of its user's past.

Douban has no times. A user's rows are put into a random order, so that a training row sees those of their other
training rows that come before it (a row that saw all others would give its own label away: what is missing from a sum
that can be learnt), and a judged row sees all of them. Amazon has times: rows before one common cut teach, each row
sees what lies strictly before its own moment.

Cold users. Douban: of the users of both domains, a tenth is cold in the one and another tenth in the other; all their
rows there are judged, and half as many again are held out likewise to choose by. Amazon: a row is cold where its
user has no earlier row in its domain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.public_pairs import Pair, amazon_reviews, settle
from domains.events.histories import Histories, HistoryStore, action_code
from domains.events.splits import Split
from domains.public import PreparedDomain
from domains.registry.registry import Domain
from domains.spec import DomainSpec
from orchestrator.data.batches import Examples
from orchestrator.data.dataset import Workspace
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.settings import Settings

COLD_SHARE = 0.10
COLD_VALIDATION_SHARE = 0.05
HELD_SHARE = 0.10
"""Of all other rows (Douban), or of all rows by time (Amazon): as many to choose by, and as many to judge on."""


@dataclass(frozen=True)
class ClickPair(Pair):
    """Domains of clicks, or of ratings of which those above 3 count as clicks.

    ``names`` are the domains' names as segments; a domain that is not among them stands under its own.
    """

    names: Mapping[str, str] = field(default_factory=dict)

    def segment(self, domain: str) -> str:
        return self.names.get(domain, domain)


_CLICKS = {"task": "ctr"}
"""For loaders of ratings."""


def _douban(**more: bool) -> ClickPair:
    options = {**_CLICKS, "sources": ["book"], "targets": ["music"], **more}
    return ClickPair(
        "douban", "douban", ("*book*", "*music*"), options, {"douban-book": "book", "douban-music": "music"}
    )


PAIRS = {
    "douban": _douban(),
    "douban-unfiltered": _douban(unfiltered=True),
    "amazon": ClickPair(
        "amazon-heterogeneous",
        "amazon_movie_tv",
        ("user_item.dat",),
        {**_CLICKS, "sources": ["1"], "targets": ["2"]},
        {"amazon-category-1": "category 1", "amazon-category-2": "category 2"},
    ),
    "amazon-movies-and-cds": ClickPair(
        **amazon_reviews("Movies_and_TV", "CDs_and_Vinyl", **_CLICKS),
        names={"amazon-movies-and-tv": "movies", "amazon-cds-and-vinyl": "CDs"},
    ),
    "movielens": ClickPair(
        "movielens",
        "movielens",
        ("**/ratings.dat*", "**/movies.dat*", "**/users.dat*"),
        {**_CLICKS, "sources": ["Drama"], "targets": ["Comedy"]},
        {"movielens-drama": "drama", "movielens-comedy": "comedy"},
    ),
    "kuairand-tabs": ClickPair(
        "kuairand", "kuairand", ("**/log_standard_*.csv*",), {"sources": ["1"], "targets": ["0"]}
    ),
    "ali-ccp-twentieth": ClickPair(
        "ali-ccp", "ali_ccp", ("sample_skeleton_*.csv*", "common_features_*.csv*"), {"user_share": 0.05}
    ),
}
"""By setting. Of Ali-CCP all scenes are taken, and one user in twenty."""


def pair_of(setting: str) -> ClickPair:
    return PAIRS[setting.partition("-new-")[0]]


def prepare(data: Path, folder: Path, pair: str, *, new: str | None = None) -> tuple[Settings, tuple[Domain, ...]]:
    """Register and ingest the domains of a pair under ``folder``; what is there already stays.

    Args:
        new: the domain that is to be launched, a target whose source is the other; None for two sources.
    """

    def load(raw: Path) -> Iterator[tuple[DomainSpec, PreparedDomain]]:
        staged = PAIRS[pair].load(data, raw)
        for domain in sorted(staged, key=lambda one: one.spec.name == new):
            sources = tuple(other.spec.name for other in staged if other.spec.name != new)
            roles: dict[str, Any] = {"role": "source", "sources": ()}
            if domain.spec.name == new:
                roles = {"role": "target", "sources": sources}
            yield domain.spec.model_copy(update=roles), domain

    home = folder / "homes" / (pair if new is None else f"{pair}-new-{new}")
    return settle(home, load, histories=False)


@dataclass(frozen=True)
class TwoDomains(Workspace):
    """The protocol's rows, splits and histories for one seed (``split_seed``).

    Histories hold training rows alone where there are no times, and every row before the judged one's moment where
    there are.
    """

    share: float = 1.0
    """Of the training rows of ``thinned``, how many there are; the others are nowhere, in no history either."""
    thinned: str | None = None

    def examples(self, encoder: FeatureEncoder, name: str) -> Examples:
        """Rows of a domain; without times each gets a place in a random order, held-out rows one after all."""
        rows = self._rows(encoder, name)
        split = self._splits[name]
        if split.cut_us is not None:
            return rows
        time_us = np.full(len(rows), 2 + len(rows), np.int64)
        order = np.random.default_rng([self.split_seed, rows.number, 1]).permutation(len(split.train))
        # Both domains on one scale, so that a row sees the same share of either; below a second: recency says nothing.
        time_us[split.train] = 1 + (order * (ORDERED / max(1, len(order)))).astype(np.int64)
        time_us[np.concatenate([split.validation, split.test])] = ORDERED + 2
        return replace(rows, time_us=time_us)

    def split(self, rows: Examples) -> Split:
        return self._splits[rows.domain]

    def cold(self, rows: Examples) -> np.ndarray:
        """Which rows are of users of whom their domain has seen nothing before, (N,) bool; ``rows`` are all of it."""
        split = self._splits[rows.domain]
        if split.cut_us is None:
            return ~np.isin(rows.user, rows.user[split.train])
        first = np.full(int(rows.user.max()) + 1, np.iinfo(np.int64).max)
        np.minimum.at(first, rows.user, rows.time_us)
        return rows.time_us <= first[rows.user]

    @cached_property
    def histories(self) -> Histories:
        """Stores of what rows may see, written once for each seed."""
        path = self.settings.home / "seeds" / f"{self.split_seed}-{self.thinned}-{self.share:g}"
        stores = {}
        for role in ("source", "target"):
            for group in [[d] for d in self.domains if d.role == role] if role == "target" else [self._lenders()]:
                label = "source" if role == "source" else group[0].name
                if not (path / label).is_dir():
                    self._store(path / label, group)
                stores[label] = HistoryStore.open(path / label)
        return Histories(stores.pop("source"), stores, "benchmark")

    def _lenders(self) -> list[Domain]:
        return [domain for domain in self.domains if domain.role == "source"]

    def _store(self, path: Path, group: list[Domain]) -> None:
        encoder = self.encoder
        parts = []
        for domain in group:
            rows = self.examples(encoder, domain.name)
            split = self._splits[domain.name]
            seen = split.train if split.cut_us is None else self._kept(rows, split)
            parts.append(rows.take(seen))
        HistoryStore.build(
            path,
            user=np.concatenate([rows.user for rows in parts]),
            domain_number=np.concatenate([np.full(len(rows), rows.number) for rows in parts]),
            item=np.concatenate([rows.item for rows in parts]),
            action=np.full(sum(map(len, parts)), action_code("rate")),
            value=np.concatenate([rows.value for rows in parts]),
            time_us=np.concatenate([rows.time_us for rows in parts]),
        )

    def _kept(self, rows: Examples, split: Split) -> np.ndarray:
        """All rows but the training rows that thinning took away."""
        gone = np.ones(len(rows), bool)
        gone[np.concatenate([split.train, split.validation, split.test])] = False
        return np.flatnonzero(~gone)

    @cached_property
    def encoder(self) -> FeatureEncoder:
        """Code books enough to read rows by."""
        return self.fit_encoder(task="ctr", slots=[d.name for d in self.domains], lifelong=1, short=1, with_users=False)

    def _rows(self, encoder: FeatureEncoder, name: str) -> Examples:
        return super().examples(encoder, name)

    @cached_property
    def _splits(self) -> dict[str, Split]:
        rows = {domain.name: self._rows(self.encoder, domain.name) for domain in self.domains}
        timed = self.domains[0].spec.interactions.time is not None
        splits = _by_time(rows) if timed else _by_chance(rows, self.split_seed)
        if self.thinned is not None and self.share < 1:
            split = splits[self.thinned]
            drawn = np.random.default_rng([self.split_seed, 7]).permutation(len(split.train))
            kept = np.sort(drawn[: max(1, round(self.share * len(drawn)))])
            splits[self.thinned] = replace(split, train=split.train[kept])
        return splits


ORDERED = 500_000
"""Microseconds in which the random order of timeless rows is laid out: less than a second."""


def _by_chance(rows: Mapping[str, Examples], seed: int) -> dict[str, Split]:
    both = set.intersection(*(set(np.unique(part.user).tolist()) for part in rows.values()))
    shared = np.random.default_rng([seed, 2]).permutation(np.array(sorted(both)))
    cold, held = round(COLD_SHARE * len(shared)), round(COLD_VALIDATION_SHARE * len(shared))
    splits, taken = {}, 0
    for name in sorted(rows):
        part = rows[name]
        cold_users, held_users = shared[taken : taken + cold], shared[taken + cold : taken + cold + held]
        taken += cold + held
        draw = np.random.default_rng([seed, part.number, 3]).random(len(part))
        is_cold, is_held = np.isin(part.user, cold_users), np.isin(part.user, held_users)
        warm = ~is_cold & ~is_held
        test = is_cold | (warm & (draw < HELD_SHARE))
        validation = is_held | (warm & (draw >= HELD_SHARE) & (draw < 2 * HELD_SHARE))
        splits[name] = Split(
            np.flatnonzero(~test & ~validation),
            np.flatnonzero(validation),
            np.flatnonzero(test),
            np.sort(cold_users),
            None,
            np.sort(held_users),
        )
    return splits


def _by_time(rows: Mapping[str, Examples]) -> dict[str, Split]:
    """One cut for both domains, so that neither tells the other's future."""
    time_us = np.concatenate([part.time_us for part in rows.values()])
    begin, cut = (int(np.quantile(time_us, q, method="lower")) for q in (1 - 2 * HELD_SHARE, 1 - HELD_SHARE))
    none = np.zeros(0, np.int64)
    return {
        name: Split(
            np.flatnonzero(part.time_us < begin),
            np.flatnonzero((part.time_us >= begin) & (part.time_us < cut)),
            np.flatnonzero(part.time_us >= cut),
            none,
            cut,
        )
        for name, part in rows.items()
    }
