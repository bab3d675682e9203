"""The data of all domains as a backbone sees it: examples, code tables and histories for one encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from domains.errors import NotEnoughData
from domains.events.domain_data import DomainData
from domains.events.histories import Histories
from domains.events.splits import SPLIT_SEED, Split, launch_split, time_forward, without_time
from domains.registry.registry import Domain, Registry
from orchestrator.data.batches import BatchBuilder, EventSource, Examples
from orchestrator.data.encoding import FeatureEncoder, SourceRange, fit_domain_fields, fit_fields
from orchestrator.settings import Settings


def has_data(domain: Domain) -> bool:
    """Whether anything was ingested for a domain."""
    return bool(domain.counts.get("rows_added"))


def domains_with_data(registry: Registry) -> tuple[Domain, ...]:
    """All domains that anything was ingested for.

    Raises:
        NotEnoughData: there are none.
    """
    found = tuple(domain for domain in registry.domains() if has_data(domain))
    if not found:
        raise NotEnoughData("no domain has data yet; ingest some first")
    return found


def gather_histories(registry: Registry, settings: Settings) -> None:
    """Put every user's events of all domains in time order, where training and serving read them.

    Raises:
        NotEnoughData: no domain has data yet.
    """
    Histories.build(settings.data_dir, [(domain.spec, domain.number) for domain in domains_with_data(registry)])


@dataclass(frozen=True)
class Workspace:
    """Everything read-only that training and evaluation of some domains needs."""

    settings: Settings
    domains: tuple[Domain, ...]
    split_seed: int = SPLIT_SEED
    cold_share: float | None = None
    """Overrides the gate's share of cold users, for benchmarks that vary it."""

    def data(self, name: str) -> DomainData:
        """A domain's published files."""
        return DomainData(self.settings.data_dir, name)

    @cached_property
    def histories(self) -> Histories:
        """The published histories of all users."""
        return Histories.open(self.settings.data_dir)

    def domain(self, name: str) -> Domain:
        """One of the domains by its name."""
        return next(domain for domain in self.domains if domain.name == name)

    def fit_encoder(
        self, *, task: str, slots: Sequence[str], lifelong: int, short: int, with_users: bool
    ) -> FeatureEncoder:
        """Learn the code books from the named domains, sources first in slot order."""
        chosen = [self.domain(name) for name in slots]
        specs = [domain.spec for domain in chosen]
        data = [self.data(name) for name in slots]
        sources, offset = [], 0
        for domain, held in zip(chosen, data, strict=True):
            if domain.role == "source":
                size = len(held.item_vocabulary)
                sources.append(SourceRange(domain.name, domain.number, offset, size))
                offset += size - 1
        return FeatureEncoder(
            task=task,
            item_fields=fit_fields(
                [spec.items.features if spec.items else {} for spec in specs], [held.items() for held in data]
            ),
            user_fields=fit_fields(
                [spec.users.features if spec.users else {} for spec in specs], [held.users() for held in data]
            ),
            context_fields=fit_fields(
                [spec.interactions.context for spec in specs], [held.interactions() for held in data]
            ),
            domain_fields=fit_domain_fields(specs),
            sources=tuple(sources),
            slots=tuple(slots),
            lifelong=lifelong,
            short=short,
            users=len(data[0].user_vocabulary) if with_users else 0,
        )

    def item_codes(self, encoder: FeatureEncoder, name: str) -> np.ndarray:
        """Item feature codes of a domain by local index, (V, F)."""
        data = self.data(name)
        vocabulary, table = data.item_vocabulary, data.items()
        codes = np.zeros((len(vocabulary), len(encoder.item_fields)), np.int64)
        if table is not None:
            rows = vocabulary.index(table["item_id"].to_pylist())
            codes[rows] = encoder.codes(encoder.item_fields, table, len(table))
            codes[0] = 0
        return codes

    def source_item_codes(self, encoder: FeatureEncoder) -> np.ndarray:
        """Item feature codes of the backbone's whole source table, (V, F); row 0 is out of vocabulary."""
        codes = np.zeros((encoder.source_rows_total, len(encoder.item_fields)), np.int64)
        for source in encoder.sources:
            own = self.item_codes(encoder, source.domain)[1 : source.size]
            codes[source.offset + 1 : source.offset + 1 + len(own)] = own
        return codes

    def user_codes(self, encoder: FeatureEncoder) -> np.ndarray:
        """Profile codes by user index, (users, P); of two that describe one user the later domain counts."""
        vocabulary = self.data(self.domains[0].name).user_vocabulary
        codes = np.zeros((len(vocabulary), len(encoder.user_fields)), np.int64)
        for domain in sorted(self.domains, key=lambda domain: domain.number):
            table = self.data(domain.name).users()
            if table is None:
                continue
            rows = vocabulary.index(table["user_id"].to_pylist())
            own = encoder.codes(encoder.user_fields, table, len(table))
            for at, field in enumerate(encoder.user_fields):
                if field.name in table.column_names:
                    given = table[field.name].is_valid().to_numpy()
                    codes[rows[given], at] = own[given, at]
        if len(codes):
            codes[0] = 0
        return codes

    def batch_builder(self, encoder: FeatureEncoder, names: Sequence[str]) -> BatchBuilder:
        """A batch builder for the named domains over the published histories."""
        return BatchBuilder(
            encoder,
            user_codes=self.user_codes(encoder),
            item_codes={name: self.item_codes(encoder, name) for name in names},
            source=EventSource(self.histories.source),
            source_domains={name: numbers for name in names if (numbers := self.sources_of(name)) is not None},
            target={name: EventSource(store) for name, store in self.histories.target.items() if name in names},
        )

    def examples(self, encoder: FeatureEncoder, name: str) -> Examples:
        """All rows of a domain, in time order.

        Raises:
            NotEnoughData: the domain has no rows.
        """
        table = self.data(name).interactions()
        if len(table) == 0:
            raise NotEnoughData(f"domain {name!r} has no interactions yet; ingest some first", domain=name)
        return self._examples_of(encoder, name, table)

    def first_examples(self, encoder: FeatureEncoder, name: str, *, most: int) -> Examples:
        """Some rows of a domain, at most so many, without reading the others."""
        files = self.data(name).event_files()
        table = pq.ParquetFile(files[0]).read_row_group(0).slice(0, most)
        return self._examples_of(encoder, name, table)

    def _examples_of(self, encoder: FeatureEncoder, name: str, table: pa.Table) -> Examples:
        order = np.lexsort((table["item"].to_numpy(), table["user"].to_numpy(), table["time_us"].to_numpy()))
        table = table.take(pa.array(order))
        rows = len(table)
        return Examples(
            domain=name,
            number=self.domain(name).number,
            user=table["user"].to_numpy().astype(np.int64),
            item=table["item"].to_numpy().astype(np.int64),
            time_us=table["time_us"].to_numpy().astype(np.int64),
            label=table["label"].to_numpy().astype(np.float32),
            value=table["raw_label"].to_numpy().astype(np.float32),
            context=encoder.codes(encoder.context_fields, table, rows),
            weight=np.ones(rows, np.float32),
            offset=np.zeros(rows, np.float32),
        )

    def sources_of(self, name: str) -> frozenset[int] | None:
        """Numbers of the sources whose histories a target reads; None for all of them."""
        spec = self.domain(name).spec
        if spec.role == "source" or not spec.sources:
            return None
        return frozenset(domain.number for domain in self.domains if domain.name in spec.sources)

    def history_length(self, rows: Examples, most: int = 2000) -> np.ndarray:
        """How many events of the domain's sources lie strictly before each row, (N,), counted up to ``most``."""
        source, numbers = EventSource(self.histories.source), self.sources_of(rows.domain)
        if numbers is not None:
            source = source.only(numbers)
        start, stop = source.window(rows.user, rows.time_us, most)
        return stop - start

    def true_probabilities(self, rows: Examples) -> np.ndarray | None:
        """Click probabilities that a simulated domain was drawn from, one a row; None for real domains."""
        path = self.settings.data_dir / "domains" / rows.domain / "truth.parquet"
        if not path.is_file():
            return None
        truth, data = pq.read_table(path), self.data(rows.domain)
        user = data.user_vocabulary.index(truth["user_id"].to_pylist())
        item = data.item_vocabulary.index(truth["item_id"].to_pylist())
        time_us = truth["ts"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
        keys = zip(user.tolist(), item.tolist(), time_us.tolist(), strict=True)
        known = dict(zip(keys, truth["probability"].to_pylist(), strict=True))
        asked = zip(rows.user.tolist(), rows.item.tolist(), rows.time_us.tolist(), strict=True)
        return np.array([known[key] for key in asked], np.float64)

    def split(self, rows: Examples) -> Split:
        """The one split of a domain: sources by time; targets by cold user, and by time where there is time."""
        spec = self.domain(rows.domain).spec
        timed = spec.interactions.time is not None
        if spec.role == "target":
            return launch_split(
                spec,
                user=rows.user,
                time_us=rows.time_us,
                has_source_history=self.history_length(rows, 1) > 0,
                share=self.cold_share,
                seed=self.split_seed,
            )
        if timed:
            return time_forward(rows.time_us, validation_share=0.05, test_share=0.10)
        return without_time(rows.user, rows.item, validation_share=0.05, test_share=0.10, seed=self.split_seed)
