"""What all loaders share: scanning original files with DuckDB, writing one domain after the other, faults by line."""

from __future__ import annotations

import gzip
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, Self, cast

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from domains.errors import InvalidData, NotEnoughData
from domains.ingestion.source_files import literal, parquet
from domains.spec import DomainSpec

Task = Literal["rating", "ctr"]
Role = Literal["source", "target"]
ROWS_AT_ONCE = 100_000


@dataclass(frozen=True)
class PreparedDomain:
    """One domain ready to register and ingest: its spec (also ``spec.yaml`` beside the interactions) and its files.

    ``rows`` counts the interactions written; ``left_out`` counts rows of the original that do not belong, by reason.
    """

    spec: DomainSpec
    interactions: Path
    items: Path | None
    users: Path | None
    rows: int
    left_out: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One domain of a public set, before it is written.

    ``interactions`` is the query of its rows and ``columns`` the section of the spec that names their columns.
    ``items`` is the query of its items; it may read the rows just written as ``written``. ``users`` is a file that
    domains share. The features map names to types.
    """

    name: str
    role: Role
    interactions: str
    columns: Mapping[str, Any]
    task: Task = "ctr"
    items: str | None = None
    item_features: Mapping[str, str] = field(default_factory=dict)
    users: Path | None = None
    user_features: Mapping[str, str] = field(default_factory=dict)
    domain_features: Mapping[str, str | float] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def spec(self, sources: Sequence[str]) -> DomainSpec:
        """The spec that goes with the files; a target names ``sources``."""
        declared: dict[str, Any] = {
            "name": self.name,
            "role": self.role,
            "task": self.task,
            "owner": "public-data",
            "interactions": dict(self.columns),
            "domain_features": dict(self.domain_features),
        }
        if self.role == "target":
            declared["sources"] = list(sources)
        if self.items is not None:
            declared["items"] = {"id": "item_id", "features": dict(self.item_features)}
        if self.users is not None:
            declared["users"] = {"id": "user_id", "features": dict(self.user_features)}
        return DomainSpec.from_mapping(declared)


Loader = Callable[..., list[PreparedDomain]]
LOADERS: dict[str, Loader] = {}
"""Loader by the name that the command line takes."""


def loader(name: str) -> Callable[[Loader], Loader]:
    """Make a function the loader of a public set: ``load(path, out_dir, **options)``."""

    def register(load: Loader) -> Loader:
        LOADERS[name] = load
        return load

    return register


class Staging:
    """A DuckDB of its own on disk beside the output, so that public sets of any size pass in bounded memory.

    Use as a context manager; nothing of it stays. Every fault of a scan becomes ``InvalidData`` with file and line.
    In SQL write ``text_of(id)`` for the text of a numeric id.
    """

    def __init__(self, out_dir: Path, *, memory_limit: str = "2GB") -> None:
        self.out_dir = Path(out_dir)
        self._folder = self.out_dir / ".staging"
        self._memory_limit = memory_limit
        self._scanned: dict[str, Path] = {}

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._connection = duckdb.connect(
            str(self._folder / "staging.duckdb"),
            config={"memory_limit": self._memory_limit, "temp_directory": str(self._folder / "spill")},
        )
        # DuckDB moves a plain cast to text into the file scan, and then never checks that the column holds numbers.
        self._connection.execute("CREATE MACRO text_of(number) AS format('{}', number)")
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def scan_text(
        self,
        view: str,
        paths: Path | Sequence[Path],
        columns: Mapping[str, str],
        *,
        separator: str = ",",
        header: bool = False,
        encoding: str = "utf-8",
        quote: str = "",
        null: str = "",
    ) -> None:
        """Make ``view`` a scan of delimited files. ``columns`` maps names to DuckDB types.

        With a header the columns are found by name, in any order, and others are read as text; without one they are
        the file's columns in order.

        Raises:
            InvalidData: a named column is missing from a header.
        """
        files = [paths] if isinstance(paths, Path) else list(paths)
        layout = self._layout_by_header(files, columns, separator, encoding) if header else dict(columns)
        self._scanned[view] = files[0]
        struct = ", ".join(f"{literal(column)}: {literal(kind)}" for column, kind in layout.items())
        self._connection.execute(
            f"CREATE OR REPLACE TEMP VIEW {view} AS SELECT * FROM read_csv("
            f"[{', '.join(literal(str(file)) for file in files)}], columns={{{struct}}}, auto_detect=false, "
            f"delim={literal(separator)}, header={str(header).lower()}, encoding={literal(encoding)}, "
            f"quote={literal(quote)}, escape={literal(quote)}, nullstr={literal(null)})"
        )

    def scan_parquet(self, view: str, path: Path) -> None:
        """Make ``view`` a scan of a Parquet file.

        Raises:
            InvalidData: not a readable Parquet file.
        """
        self._scanned[view] = path
        self.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS SELECT * FROM {parquet(path)}")

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple]:
        """Run a statement and return its rows.

        Raises:
            InvalidData: an original file is not as its format says; names the file and, for text, the line.
        """
        try:
            return self._connection.execute(sql, list(parameters)).fetchall()
        except duckdb.Error as fault:
            raise self._explained(fault) from None

    def table(self, name: str, arrow_table: object) -> None:
        """Make an Arrow table readable under ``name``."""
        self._connection.register(name, arrow_table)

    def stage_rows(self, view: str, rows: Iterable[tuple], schema: pa.Schema) -> None:
        """Make ``view`` a table of rows that Python parses, written beside the output in bounded memory."""
        path = self._folder / f"{view}.parquet"
        with pq.ParquetWriter(path, schema) as writer:
            for batch in _batches(rows, ROWS_AT_ONCE):
                columns = zip(*batch, strict=True)
                arrays = [pa.array(column, type=kind.type) for column, kind in zip(columns, schema, strict=True)]
                writer.write_table(pa.table(arrays, schema=schema))
        self.execute(f"CREATE OR REPLACE TEMP VIEW {view} AS SELECT * FROM {parquet(path)}")

    def write_parts(self, parts: Iterable[Part]) -> list[PreparedDomain]:
        """Write each domain's files and ``spec.yaml`` under ``out_dir/<domain>/``; sources must come first.

        Each part is asked for after the one before is written, so parts may stage their rows under one name.
        """
        prepared: list[PreparedDomain] = []
        sources: list[str] = []
        for part in parts:
            if part.role == "source":
                sources.append(part.name)
            folder = self.out_dir / part.name
            interactions, items = folder / "interactions.parquet", folder / "items.parquet"
            rows = self.write(part.interactions, interactions)
            if part.items is not None:
                self.execute(f"CREATE OR REPLACE TEMP VIEW written AS SELECT * FROM {parquet(interactions)}")
                self.write(part.items, items)
            spec = part.spec(sources)
            (folder / "spec.yaml").write_text(spec.to_yaml(), encoding="utf-8")
            left_out = {reason: count for reason, count in part.left_out.items() if count}
            prepared.append(
                PreparedDomain(spec, interactions, None if part.items is None else items, part.users, rows, left_out)
            )
        return prepared

    def write(self, sql: str, path: Path) -> int:
        """Write a query's rows as Parquet; returns how many."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return int(self.execute(f"COPY ({sql}) TO {literal(str(path))} (FORMAT parquet, COMPRESSION zstd)")[0][0])

    def _layout_by_header(
        self, files: Sequence[Path], columns: Mapping[str, str], separator: str, encoding: str
    ) -> dict[str, str]:
        layout: dict[str, str] = {}
        for file in files:
            with open_text(file, encoding=encoding) as lines:
                names = [name.strip().strip('"') for name in lines.readline().lstrip("\ufeff").split(separator)]
            missing = [name for name in columns if name not in names]
            if missing:
                raise fault_at(file, 1, f"the header lacks {', '.join(missing)}; it has {', '.join(names)}")
            if layout and list(layout) != names:
                raise fault_at(file, 1, f"the header differs from that of {files[0].name}")
            layout = {name: columns.get(name, "VARCHAR") for name in names}
        return layout

    def _explained(self, fault: duckdb.Error) -> InvalidData:
        text = str(fault)
        line, file = re.search(r"on Line: (\d+)", text), re.search(r"\bfile = (.+)", text)
        path = Path(file.group(1).strip()) if file else next(iter(self._scanned.values()), self.out_dir)
        if not line:
            return InvalidData(f"{path}: cannot be read: {text.splitlines()[0]}", file=str(path))
        # DuckDB says which line, shows it, then what is wrong with it; its list of reader settings helps nobody here.
        wrong = next((said for said in text.splitlines()[2:] if said.strip()), text.splitlines()[0])
        return fault_at(path, int(line.group(1)), wrong.strip())


def fault_at(path: Path, line: int, message: str) -> InvalidData:
    """The error for a bad line of an original file."""
    return InvalidData(f"{path}, line {line}: {message}", file=str(path), line=line)


def open_text(path: Path, *, encoding: str = "utf-8") -> IO[str]:
    """Open a text file, gzipped or not. Undecodable bytes become replacement characters, which parsers then refuse."""
    if path.suffix == ".gz":
        return cast(IO[str], gzip.open(path, "rt", encoding=encoding, errors="replace"))
    return path.open(encoding=encoding, errors="replace")


def find(folder: Path, *names: str, required: bool = True) -> Path | None:
    """The first of ``names`` (or its .gz) inside ``folder``, or ``folder`` itself where it is that file.

    Raises:
        InvalidData: none is there although it is required.
    """
    for name in names:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
        if folder.is_file() and folder.name in (name, f"{name}.gz"):
            return folder
    if required:
        raise InvalidData(f"{folder}: holds no {' or '.join(names)}", file=str(folder))
    return None


def find_required(folder: Path, *names: str) -> Path:
    """As ``find``, and it must be there."""
    return cast(Path, find(folder, *names))


def roles(
    available: Collection[str], *, sources: Sequence[str] | None, targets: Sequence[str]
) -> list[tuple[str, Role]]:
    """Domains to write with their role, sources first; ``sources=None`` takes all that are no target.

    Raises:
        InvalidData: a name that is not available, or one in both roles.
        NotEnoughData: no target.
    """
    if sources is None:
        sources = [name for name in available if name not in targets]
    for name in (*sources, *targets):
        if name not in available:
            raise InvalidData(f"no domain {name!r} in these files; there are {', '.join(available)}")
    both = set(sources) & set(targets)
    if both:
        raise InvalidData(f"{', '.join(sorted(both))} cannot be both source and target")
    if not targets:
        raise NotEnoughData("at least one target domain is needed")
    return [*((name, cast(Role, "source")) for name in sources), *((name, cast(Role, "target")) for name in targets)]


def roles_by_size(
    sizes: Sequence[tuple[str, int]],
    *,
    sources: Sequence[str] | None,
    targets: Sequence[str] | None,
    minimum_rows: int,
    largest: int = 1,
) -> list[tuple[str, Role]]:
    """As ``roles`` for domains with their rows, most first. By default the ``largest`` so many are sources, and each
    other domain with at least ``minimum_rows`` is a target."""
    if sources is None:
        sources = [name for name, _ in sizes[:largest] if name not in (targets or ())]
    if targets is None:
        targets = [name for name, rows in sizes if name not in sources and rows >= minimum_rows]
    return roles([name for name, _ in sizes], sources=sources, targets=targets)


def rating_columns(task: Task, *, timed: bool) -> dict[str, Any]:
    """The ``interactions`` section of ratings 1 to 5; for clicks a rating above 3 counts as one."""
    columns: dict[str, Any] = {"user": "user_id", "item": "item_id", "label": "rating", "label_range": [1, 5]}
    if timed:
        columns |= {"time": "ts", "time_unit": "s"}
    if task == "ctr":
        columns["positive_above"] = 3
    return columns


def sampled(column: str, share: float) -> str:
    """SQL that holds for the same share of a column's values in every run, chosen by their hash."""
    return f"hash({column}) % 10000 < {round(share * 10_000)}"


def slug(text: str) -> str:
    """A domain name of a title: "Movies & TV" -> "movies-tv"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]


def _batches(rows: Iterable[tuple], size: int) -> Iterator[tuple[tuple, ...]]:
    iterator = iter(rows)
    while batch := tuple(islice(iterator, size)):
        yield batch
