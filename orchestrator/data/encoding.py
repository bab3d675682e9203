"""The feature encoder: categories and numbers of a domain's files become the integer codes of embedding tables.

A ``FeatureEncoder`` is fitted once, when a backbone is trained, and stored with it as ``encoder.json``, so that serving
encodes exactly as training did. Code 0 always means missing or never seen. Vocabularies are append-only
(``domains.events.vocabulary``): an item keeps its number for ever, and an encoder only holds how many there were.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from domains.errors import InvalidSpec
from domains.events.publishing import point_at
from domains.spec import DomainSpec
from orchestrator.values import Value

NUMBER_BINS = 16
MAXIMUM_CATEGORIES = 100_000


@dataclass(frozen=True)
class Field:
    """One feature: either known category values or the inner edges of quantile bins."""

    name: str
    kind: str
    values: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Number of codes, the 0 of missing values included."""
        return 1 + (len(self.values) if self.kind == "category" else len(self.edges) + 1)

    def encode(self, column: pa.Array | pa.ChunkedArray | Sequence[Any]) -> np.ndarray:
        """Codes of a column, (N,) int64."""
        if not isinstance(column, pa.Array | pa.ChunkedArray):
            column = pa.array([None if value is None else str(value) for value in column], pa.string())
        if self.kind == "category":
            known = pc.index_in(pc.cast(column, pa.string()), value_set=pa.array(self.values, pa.string()))
            return pc.add(pc.fill_null(known, -1), 1).to_numpy(zero_copy_only=False).astype(np.int64)
        numbers = _as_numbers(column)
        codes = np.searchsorted(np.asarray(self.edges), numbers, side="right") + 1
        return np.where(np.isnan(numbers), 0, codes).astype(np.int64)

    @classmethod
    def fit(cls, name: str, kind: str, columns: Sequence[pa.ChunkedArray]) -> Self:
        """Learn the codes of a feature from every domain that declares it; most frequent categories first."""
        joined = pa.chunked_array([chunk for column in columns for chunk in column.chunks], type=columns[0].type)
        if kind == "category":
            counts = pc.value_counts(pc.drop_null(pc.cast(joined, pa.string())))
            values, frequency = counts.field("values").to_pylist(), counts.field("counts").to_pylist()
            ranked = sorted(zip(values, frequency, strict=True), key=lambda pair: (-pair[1], pair[0]))
            return cls(name, kind, values=tuple(value for value, _ in ranked[:MAXIMUM_CATEGORIES]))
        numbers = _as_numbers(joined)
        numbers = numbers[~np.isnan(numbers)]
        quantiles = np.linspace(0, 1, NUMBER_BINS + 1)[1:-1]
        edges = np.unique(np.quantile(numbers, quantiles)) if len(numbers) else np.zeros(0)
        return cls(name, kind, edges=tuple(float(edge) for edge in edges))


@dataclass(frozen=True)
class SourceRange:
    """Where a source domain's items lie in the backbone's table: rows ``offset + local``, ``1 <= local < size``."""

    domain: str
    number: int
    offset: int
    size: int


class FeatureEncoder(Value):
    """The code books of one backbone.

    ``slots`` are the domains of shared training in the order of their slots in the network.
    ``users`` is the size of the user table, 0 when the network has none.
    """

    task: str
    item_fields: tuple[Field, ...]
    user_fields: tuple[Field, ...]
    context_fields: tuple[Field, ...]
    domain_fields: tuple[Field, ...]
    sources: tuple[SourceRange, ...]
    slots: tuple[str, ...]
    lifelong: int
    short: int
    users: int = 0
    trained_until_us: int | None = None
    """Time of the newest row of shared training, set once its rows are known."""

    @property
    def source_rows_total(self) -> int:
        """Rows of the backbone's source item table, the out-of-vocabulary row 0 included."""
        return 1 + sum(source.size - 1 for source in self.sources)

    def source_rows(self, number: np.ndarray, local: np.ndarray) -> np.ndarray:
        """Table rows of source items given as (domain number, local index); 0 for what the backbone never saw.

        Shapes: number and local any equal shape, int; returns the same shape, int64.
        """
        top = max((source.number for source in self.sources), default=0) + 1
        offset, size = np.zeros(top + 1, np.int64), np.zeros(top + 1, np.int64)
        for source in self.sources:
            offset[source.number], size[source.number] = source.offset, source.size
        number = np.where((number < 0) | (number > top), top, number)
        local = local.astype(np.int64)
        return np.where((local > 0) & (local < size[number]), offset[number] + local, 0)

    def codes(self, fields: tuple[Field, ...], table: pa.Table | None, rows: int) -> np.ndarray:
        """Codes of a table's columns, (rows, len(fields)) int64; columns that the table lacks stay 0."""
        codes = np.zeros((rows, len(fields)), np.int64)
        if table is not None:
            for position, field in enumerate(fields):
                if field.name in table.column_names:
                    codes[:, position] = field.encode(table[field.name])
        return codes

    def one(self, fields: tuple[Field, ...], values: Mapping[str, Any]) -> np.ndarray:
        """Codes of one thing given as a mapping, (len(fields),) int64."""
        return np.array([int(field.encode([values.get(field.name)])[0]) for field in fields], dtype=np.int64)

    def domain_codes(self, spec: DomainSpec) -> tuple[int, ...]:
        """Codes of a domain's own features, one a domain field."""
        return tuple(int(code) for code in self.one(self.domain_fields, spec.domain_features))

    def source(self, domain: str) -> SourceRange | None:
        """A source domain's range; None for a target, whose items the backbone does not hold."""
        return next((source for source in self.sources if source.domain == domain), None)

    def save(self, directory: Path) -> None:
        """Write ``encoder.json`` into a version's folder."""
        point_at(directory / "encoder.json", self.as_dict())

    @classmethod
    def load(cls, directory: Path) -> Self:
        """The encoder that ``save`` wrote."""
        return cls.from_dict(json.loads((directory / "encoder.json").read_text()))


def fit_fields(kind_of: Sequence[Mapping[str, str]], tables: Sequence[pa.Table | None]) -> tuple[Field, ...]:
    """Fields of several domains, shared by name: the same feature name is the same code book everywhere.

    Raises:
        InvalidSpec: one name is a category in one domain and a number in another.
    """
    kinds: dict[str, str] = {}
    for declared in kind_of:
        for name, kind in declared.items():
            if kinds.setdefault(name, kind) != kind:
                raise InvalidSpec(
                    f"feature {name!r} is a {kinds[name]} in one domain and a {kind} in another; rename one of them",
                    field=name,
                )
    fields = []
    for name, kind in sorted(kinds.items()):
        columns = [table[name] for table in tables if table is not None and name in table.column_names]
        if columns:
            fields.append(Field.fit(name, kind, columns))
    return tuple(fields)


def fit_domain_fields(specs: Sequence[DomainSpec]) -> tuple[Field, ...]:
    """Domain features of all domains as categories, in the order of their names."""
    names = sorted({name for spec in specs for name in spec.domain_features})
    return tuple(
        Field(
            name,
            "category",
            values=tuple(sorted({str(spec.domain_features[name]) for spec in specs if name in spec.domain_features})),
        )
        for name in names
    )


def _as_numbers(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        values = column.to_pylist()
        return np.array([_number(value) for value in values], np.float64)
    return pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False)


def _number(value: str | None) -> float:
    try:
        return float("nan") if value is None else float(value)
    except ValueError:
        return float("nan")
