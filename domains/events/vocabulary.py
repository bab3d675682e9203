"""Ids as small integers that never change: an append-only list of names on disk.

A name's index is its place in the list, so it never changes and stays valid in every later version. Index 0 means
"unknown". The list is stored in a folder as Parquet segments (columns ``index``, ``name``) that ``vocabulary.json``
names; appending writes a new segment and then replaces that file, so a crash adds all of the names or none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from domains.events.publishing import flush_folder, only_writer, point_at, pointed_at

UNKNOWN = 0
MOST_SEGMENTS = 64
"""Appending to a list of more segments than this rewrites it as one, so that opening stays fast."""


class Vocabulary:
    """Append-only map of string ids to integers; index 0 is unknown.

    >>> with Vocabulary.writing(folder) as vocabulary:        # empty where there is none
    ...     vocabulary.append_new(pa.array(["b", "a"]))
    >>> Vocabulary.load(folder).index(["a", "never seen"])
    array([2, 0])
    """

    def __init__(self, path: Path, stored: pa.ChunkedArray, segments: list[str]) -> None:
        self.path = path
        self._stored = stored
        self._segments = segments
        self._added: list[str] = []
        self._lookup: dict[str, int] | None = None

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read the names under ``path``; an absent folder is an empty vocabulary."""
        path = Path(path)
        listed = pointed_at(path / "vocabulary.json") or {"segments": []}
        chunks = [
            pq.read_table(path / name, columns=["name"], partitioning=None).column("name")
            for name in listed["segments"]
        ]
        stored = pa.chunked_array([chunk for column in chunks for chunk in column.chunks], type=pa.string())
        return cls(path, stored, listed["segments"])

    @classmethod
    @contextmanager
    def writing(cls, path: str | Path) -> Iterator[Vocabulary]:
        """Load for appending while other writers wait; saved on leaving, unless an exception leaves."""
        path = Path(path)
        with only_writer(path):
            vocabulary = cls.load(path)
            yield vocabulary
            vocabulary.save()

    def __len__(self) -> int:
        """Rows of a table that this vocabulary indexes: all names and the unknown row 0."""
        return 1 + len(self._stored) + len(self._added)

    def segments(self) -> list[Path]:
        """The Parquet files that hold the saved names, columns ``index`` (int64) and ``name`` (string)."""
        return [self.path / name for name in self._segments]

    def index(self, ids: Iterable[str | None]) -> np.ndarray:
        """Index of each id, (N,) int64; 0 where it is unknown, empty or None."""
        known = self._known()
        return np.fromiter((known.get(name, UNKNOWN) for name in ids), dtype=np.int64)

    def append_new(self, names: pa.Array | pa.ChunkedArray) -> None:
        """Append names in bulk that the caller knows to be absent, without building the lookup of all names.

        Raises:
            ValueError: a name comes twice, or is null or empty.
        """
        if len(names.unique()) != len(names) or names.null_count or pc.any(pc.equal(names, "")).as_py():
            raise ValueError("new names must be distinct and not empty")
        self._added.extend(names.to_pylist())
        self._lookup = None

    def name(self, index: int) -> str:
        """The id at an index.

        Raises:
            IndexError: no id has it; index 0 is no id.
        """
        if not 1 <= index < len(self):
            raise IndexError(f"no id has index {index}; they run from 1 to {len(self) - 1}")
        if index <= len(self._stored):
            return self._stored[int(index) - 1].as_py()
        return self._added[index - 1 - len(self._stored)]

    def names(self) -> pa.ChunkedArray:
        """All ids in the order of their indices, from index 1 on."""
        return pa.chunked_array([*self._stored.chunks, pa.array(self._added, pa.string())])

    def save(self) -> None:
        """Make appended names durable, all or none; for ``writing``, which keeps other writers out."""
        if not self._added:
            return
        names = self.names()
        rewrite = len(self._segments) >= MOST_SEGMENTS
        first = 1 if rewrite else 1 + len(self._stored)
        written = names.slice(first - 1)
        # A name that no published list can hold: a crashed writer's file is overwritten, never mistaken for ours.
        segment = f"{first:012d}-{first + len(written) - 1:012d}.parquet"
        table = pa.table({"index": pa.array(np.arange(first, first + len(written))), "name": written})
        pq.write_table(table, self.path / f".{segment}", compression="zstd")
        with open(self.path / f".{segment}", "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(self.path / f".{segment}", self.path / segment)
        flush_folder(self.path)
        earlier = [] if rewrite else self._segments
        point_at(self.path / "vocabulary.json", {"segments": [*earlier, segment], "rows": len(self)})
        # Segments of before a rewrite stay: a reader that opened the old list may be about to read them.
        self._stored, self._added, self._segments = names, [], [*earlier, segment]

    def _known(self) -> dict[str | None, int]:
        if self._lookup is None:
            self._lookup = {name: place for place, name in enumerate(self.names().to_pylist(), start=1)}
        return self._lookup  # type: ignore[return-value]
