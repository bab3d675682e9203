"""A domain's validated data as others read it: events, items, users, counts, bad rows, popularity.

<data_dir>/users/                         the vocabulary of all users
<data_dir>/items-<domain>/                the vocabulary of the domain's items
<data_dir>/domains/<domain>/current.json  names the published generations; replaced in one step
<data_dir>/domains/<domain>/generations/<number>-<ingest id>/
    events/date=2024-05-01/events.parquet     one folder a day, month or year
    items.parquet, users.parquet              all items and users so far; only where the ingest changed them
    quarantine.parquet                        bad rows with file, line, reason, content
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from domains.errors import NotEnoughData
from domains.events.publishing import pointed_at
from domains.events.vocabulary import Vocabulary

QUARANTINE = pa.schema([("file", pa.string()), ("line", pa.int64()), ("reason", pa.string()), ("row", pa.string())])
PRIOR_WEIGHT = 20.0
"""Events at the domain's mean that the popularity score adds to each item."""


@dataclass(frozen=True)
class IngestReport:
    """What one ingest did.

    ``ingest_id`` is a hash of the spec and the contents of the files, so a repeated ingest has the id of the first.
    ``rows_*`` and ``reasons`` count rows of events in this run; ``users``, ``items``, ``first_us``, ``last_us`` and
    ``label_mean`` describe the domain's events after it. ``quarantine`` is the Parquet file of all bad rows, those
    of items and users too. ``warnings`` are sentences for the team.
    """

    ingest_id: str
    rows_read: int
    rows_added: int
    rows_duplicate: int
    rows_quarantined: int
    reasons: dict[str, int]
    quarantine: Path
    users: int
    items: int
    first_us: int | None
    last_us: int | None
    label_mean: float | None
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {**asdict(self), "quarantine": str(self.quarantine)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> IngestReport:
        """The report that ``as_dict`` gave; keys it does not know are left out."""
        known = {f.name: values[f.name] for f in fields(cls)}
        return cls(**{**known, "quarantine": Path(values["quarantine"])})


@dataclass(frozen=True)
class DomainFolder:
    """Where a domain's data is stored; no file is opened until asked."""

    data_dir: Path
    name: str

    @property
    def root(self) -> Path:
        return self.data_dir / "domains" / self.name

    @property
    def pointer(self) -> Path:
        return self.root / "current.json"

    @property
    def generations(self) -> Path:
        return self.root / "generations"

    @property
    def user_vocabulary(self) -> Path:
        return self.data_dir / "users"

    @property
    def item_vocabulary(self) -> Path:
        return self.data_dir / f"items-{self.name}"

    def event_files(self, generations: Sequence[dict[str, Any]]) -> list[Path]:
        """The Parquet files of the events of published generations, in order."""
        return [self.generations / done["folder"] / name for done in generations for name in done["files"]]

    def state(self) -> dict[str, Any]:
        """What is published: ``generations`` (id, folder, report of each), ``items``, ``users``, ``totals``."""
        return pointed_at(self.pointer) or {"generations": [], "items": None, "users": None, "totals": {}}


class DomainData:
    """The read side of one domain, as it was when this was made: a later ingest does not change it.

    >>> data = DomainData(data_dir, "live-rooms")
    >>> data.interactions().num_rows
    """

    def __init__(self, data_dir: Path, name: str) -> None:
        self.folder = DomainFolder(Path(data_dir), name)
        self.name = name
        self._state = self.folder.state()

    def __bool__(self) -> bool:
        """Whether anything was ever published."""
        return bool(self._state["generations"])

    @property
    def version(self) -> str:
        """Changes with every ingest that changed anything."""
        return "+".join(generation["folder"] for generation in self._state["generations"])

    def event_files(self) -> list[Path]:
        """The Parquet files of all events, in a fixed order; within a file by time, user, item and action."""
        return self.folder.event_files(self._state["generations"])

    def event_batches(self, columns: Sequence[str], rows: int = 1 << 18) -> Iterator[pa.RecordBatch]:
        """Events batch by batch, for what does not fit in memory; the order is the same on every call."""
        for path in self.event_files():
            yield from pq.ParquetFile(path).iter_batches(batch_size=rows, columns=list(columns))

    def interactions(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All events: ``user_id``, ``item_id`` (string); ``user``, ``item`` (int64 index); ``time_us`` (int64);
        ``label`` (float32, what is predicted); ``raw_label`` (float32, as the file had it, so the rating where
        ``positive_above`` makes clicks of ratings); ``action`` (string, empty if none); context columns.

        Raises:
            NotEnoughData: the domain has no events yet.
        """
        paths = self.event_files()
        if not paths:
            raise NotEnoughData(f"{self.name}: has no events yet", domain=self.name)
        tables = [
            pq.read_table(path, columns=None if columns is None else list(columns), partitioning=None) for path in paths
        ]
        return pa.concat_tables(tables, promote_options="permissive")

    def items(self) -> pa.Table | None:
        """``item_id``, ``item`` (int64 index) and the item features (string or double); None without an items file."""
        return self._side("items")

    def users(self) -> pa.Table | None:
        """``user_id``, ``user`` (int64 index) and the user features; None without a users file."""
        return self._side("users")

    def _side(self, table: str) -> pa.Table | None:
        place = self._state[table]
        return None if place is None else pq.read_table(self.folder.generations / place, partitioning=None)

    def counts(self) -> dict[str, Any]:
        """``events``, ``users``, ``items`` with events, ``first_us``, ``last_us``, ``label_mean``, ``quarantined``."""
        empty = {"events": 0, "users": 0, "items": 0, "first_us": None, "last_us": None, "label_mean": None}
        quarantined = sum(generation["report"]["rows_quarantined"] for generation in self._state["generations"])
        return {**empty, **self._state["totals"], "quarantined": quarantined}

    def ingests(self) -> list[IngestReport]:
        """The report of each published ingest, oldest first, as it is on disk, whether or not it was recorded."""
        return [IngestReport.from_dict(generation["report"]) for generation in self._state["generations"]]

    def quarantine(self, limit: int = 1000) -> list[dict[str, Any]]:
        """Bad rows of all ingests, the latest ingest first: ``file``, ``line``, ``reason``, ``row``."""
        rows: list[dict[str, Any]] = []
        for generation in reversed(self._state["generations"]):
            path = self.folder.generations / generation["folder"] / "quarantine.parquet"
            for batch in pq.ParquetFile(path).iter_batches(batch_size=1000):
                rows += batch.slice(0, limit - len(rows)).to_pylist()
                if len(rows) >= limit:
                    return rows
        return rows

    @property
    def item_vocabulary(self) -> Vocabulary:
        """The domain's items, read anew."""
        return Vocabulary.load(self.folder.item_vocabulary)

    @property
    def user_vocabulary(self) -> Vocabulary:
        """All users of all domains, read anew."""
        return Vocabulary.load(self.folder.user_vocabulary)

    def popularity(self) -> pa.Table:
        """What can be said of each item without personalisation, one row for each item of the vocabulary.

        Columns ``item_id``, ``item``, ``events``, ``label_mean`` (null without events) and
        ``score = (sum + PRIOR_WEIGHT * mean) / (events + PRIOR_WEIGHT)``, where ``mean`` is the domain's mean label.
        """
        vocabulary = self.item_vocabulary
        events, total = np.zeros(len(vocabulary)), np.zeros(len(vocabulary))
        for batch in self.event_batches(["item", "label"]):
            item, label = batch.column("item").to_numpy(), batch.column("label").to_numpy()
            events += np.bincount(item, minlength=len(vocabulary))
            total += np.bincount(item, weights=label, minlength=len(vocabulary))
        mean = total.sum() / events.sum() if events.sum() else 0.0
        score = (total + PRIOR_WEIGHT * mean) / (events + PRIOR_WEIGHT)
        seen = np.divide(total, events, out=np.zeros_like(total), where=events > 0)
        return pa.table(
            {
                "item_id": vocabulary.names(),
                "item": pa.array(np.arange(1, len(vocabulary))),
                "events": pa.array(events[1:].astype(np.int64)),
                "label_mean": pa.array(seen[1:], mask=events[1:] == 0),
                "score": pa.array(score[1:]),
            }
        )
