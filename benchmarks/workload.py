"""Histories, rows and networks of the training benchmark, through the same code as the product's own runs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from domains.events.histories import HistoryStore
from models.batch import Batch
from models.ranker import adapters
from models.ranker.network import DomainConfig, Ranker, RankerConfig
from models.ranker.precompute import frozen_cache
from models.training import loop
from models.training.optimisers import Optimisers
from orchestrator.data.batches import BatchBuilder, DomainBatchSampler, EventSource, Examples
from orchestrator.data.encoding import FeatureEncoder, Field, SourceRange
from orchestrator.training.fine_tune import FROZEN_CACHE_BYTES

WIDTH = 64
ACTIONS = 16
TARGET_ITEMS = 50_000
DAY_US = 86_400_000_000
ZIPF = 1.05


@dataclass(frozen=True)
class Shape:
    """What is trained on.

    length: events of each history; items: rows of the source table; batch: rows of a step
    session: rows of one user that stand together, as the product's batches group them
    """

    length: int
    items: int = 200_000
    batch: int = 2048
    session: int = 8


def _encoder(shape: Shape) -> FeatureEncoder:
    """Two user fields, a context field and a domain field, so that every input of the head is there."""
    ages = Field("age", "category", values=("young", "old"))
    return FeatureEncoder(
        task="ctr",
        item_fields=(),
        user_fields=(ages, Field("city", "category", values=("a", "b", "c"))),
        context_fields=(Field("hour", "number", edges=(6.0, 12.0, 18.0)),),
        domain_fields=(Field("surface", "category", values=("feed", "live")),),
        sources=(SourceRange("video", 1, 0, shape.items),),
        slots=("video",),
        lifelong=shape.length,
        short=24,
    )


class Workload:
    """Users with full histories, each looking at ``session`` items: a store on disk and batches from it.

    The domain "video" is a source, "live" a target with items of its own; a row of either reads the same history.
    """

    def __init__(self, shape: Shape, *, batches: int = 2, seed: int = 0) -> None:
        self.shape = shape
        random = np.random.default_rng(seed)
        users = -(-shape.batch * batches // shape.session)
        self._folder = tempfile.TemporaryDirectory(prefix="graft-benchmark-")
        events = users * shape.length
        store = HistoryStore.build(
            Path(self._folder.name) / "source",
            user=np.repeat(np.arange(1, users + 1), shape.length),
            domain_number=np.ones(events, np.int16),
            item=zipf(random, shape.items, events),
            action=random.integers(1, 5, events),
            value=random.integers(0, 2, events).astype(np.float32),
            time_us=random.integers(0, 300 * DAY_US, events),
        )
        recent = HistoryStore.build(
            Path(self._folder.name) / "live",
            user=np.repeat(np.arange(1, users + 1), 24),
            domain_number=np.full(users * 24, 2, np.int16),
            item=zipf(random, TARGET_ITEMS, users * 24),
            action=random.integers(1, 5, users * 24),
            value=random.integers(0, 2, users * 24).astype(np.float32),
            time_us=random.integers(0, 300 * DAY_US, users * 24),
        )
        encoder = _encoder(shape)
        self.encoder = encoder
        nothing = np.zeros((1, 0), np.int64)
        self._batch_builder = BatchBuilder(
            encoder,
            user_codes=np.stack([random.integers(0, 3, users + 1), random.integers(0, 4, users + 1)], 1),
            item_codes={"video": nothing, "live": nothing},
            source=EventSource(store),
            target={"live": EventSource(recent)},
        )
        rows = users * shape.session
        user = np.repeat(np.arange(1, users + 1), shape.session)
        self._rows = {
            name: Examples(
                domain=name,
                number=number,
                user=user,
                item=zipf(random, items, rows),
                # Of one session, minutes apart.
                time_us=300 * DAY_US + np.tile(np.arange(shape.session), users) * 60_000_000,
                label=random.integers(0, 2, rows).astype(np.float32),
                value=np.ones(rows, np.float32),
                context=random.integers(0, 5, (rows, 1)),
                weight=np.ones(rows, np.float32),
                offset=np.zeros(rows, np.float32),
            )
            for name, number, items in (("video", 1, shape.items), ("live", 2, TARGET_ITEMS))
        }

    def epochs(self, domain: str = "video", slot: int = 0) -> DomainBatchSampler:
        """Batches as shared training (``video``) or fine-tuning (``live``) makes them."""
        return DomainBatchSampler(
            self._batch_builder,
            [(self._rows[domain], slot)],
            batch_size=self.shape.batch,
            seed=0,
            session_rows=self.shape.session,
            first_key=0 if domain == "live" else None,
        )

    def batches(self, domain: str = "video", slot: int = 0, epoch: int = 0) -> Iterator[Batch]:
        """An epoch of batches."""
        return self.epochs(domain, slot).batches(epoch)

    def ranker(self, architecture: str) -> Ranker:
        """A fresh network for these rows: slot 0 is "video", slot 1 "live"."""
        torch.manual_seed(0)
        encoder = self.encoder
        ranker = Ranker(
            RankerConfig(
                source_items=self.shape.items,
                user_fields=tuple(field.size for field in encoder.user_fields),
                context_fields=tuple(field.size for field in encoder.context_fields),
                domain_fields=tuple(field.size for field in encoder.domain_fields),
                actions=ACTIONS,
                width=WIDTH,
                architecture=architecture,  # type: ignore[arg-type]
            )
        )
        ranker.add_domain(DomainConfig(0, (1,)))
        ranker.add_domain(DomainConfig(TARGET_ITEMS, (2,)), torch.zeros(TARGET_ITEMS, 0, dtype=torch.long))
        return ranker


class Ours:
    """Steps of the product's training loop with its default settings, on one batch."""

    def __init__(self, model: nn.Module, batch: Batch, *, device: str = "cpu") -> None:
        self.model, self.batch, self.config = model.to(device).train(), batch.to(device), loop.TrainConfig()
        with loop.sparse_tables(model, self.config):
            self.optimisers = Optimisers(model, learning_rate=self.config.learning_rate)

    def step(self) -> None:
        """One training step on the batch."""
        with loop.sparse_tables(self.model, self.config):
            loop.descend(self.model, self.batch, self.optimisers, self.config)


def shared(work: Workload, architecture: str, *, device: str = "cpu") -> Ours:
    """Training of the shared model."""
    return Ours(work.ranker(architecture), next(work.batches()), device=device)


def whole_on_target(work: Workload, architecture: str) -> Ours:
    """Training of everything on the rows that fine-tuning has."""
    return Ours(work.ranker(architecture), next(work.epochs("live", 1).batches(0)))


class FineTuning(Ours):
    """Fine-tuning of the target's adapter as a launch does it.

    ``ahead`` is what a step's rows took, in CPU milliseconds, in the pass before the first epoch.
    """

    def __init__(self, work: Workload, architecture: str) -> None:
        ranker, data = work.ranker(architecture), work.epochs("live", 1)
        adapters.freeze_all_but(ranker, 1)
        super().__init__(ranker, next(data.batches(0)))
        began = time.process_time()
        rows = len(data) * len(self.batch)
        self.cache = frozen_cache(ranker, data.each_row_once(), rows, limit=FROZEN_CACHE_BYTES)
        self.ahead = (time.process_time() - began) / len(data) * 1e3
        self.ranker = ranker

    def step(self) -> None:
        with self.ranker.using(self.cache):
            super().step()


def zipf(random: np.random.Generator, items: int, count: int) -> np.ndarray:
    """Ids 1 .. items - 1 with Zipf-distributed frequencies; neighbours in frequency are no neighbours in the table."""
    share = np.cumsum(1 / np.arange(1, items) ** ZIPF)
    rank = np.searchsorted(share, random.random(count) * share[-1])
    return (random.permutation(items - 1)[np.minimum(rank, items - 2)] + 1).astype(np.int64)
